"""Steps of pairs, kept as what enters each block and the gradient at its output."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from smda_jax.data.batch.batches import PairBatch
from smda_jax.model.config import ModelConfig
from smda_jax.model.forward import RESIDUAL, BlockTaps, TapSource, block, block_zeros
from smda_jax.model.norms import tile_scale
from smda_jax.model.operations import Linear
from smda_jax.model.params import Layer, Params
from smda_jax.pytree import pytree
from smda_jax.steps.gradient import (
    PairStatistics,
    gradient,
    scale_gradient,
    squared_norm,
)
from smda_jax.steps.injection import (
    EmbedStep,
    LinearStep,
    OperationStep,
    ScaleStep,
    UnembedStep,
)
from smda_jax.steps.updates.contract import Update


class KeptOfLayer(NamedTuple):
    """What is kept of pairs in one block, or, stacked, in all.

    Attributes:
        stream: residual stream before the block.
        delta: at the block's output.
        part: what the update needs of the block.
        masks: which of its operations' parameters move; None for all.
    """

    stream: Float[Array, "*layer_pair token hidden"]
    delta: Float[Array, "*layer_pair token hidden"]
    part: Any
    masks: dict[str, Float[Array, "*layer part"]] | None = None


@pytree
class StepCheckpoints:
    """Steps of a group of pairs, each from the same base weights; deltas carry -η.

    Of each block only the residual stream that enters it and the gradient at its output are kept:
    `hidden` numbers per token instead of some twenty times as many. An engine that comes to a
    layer gets the factors of its operations back from one backward pass through that block.

    Attributes:
        stream: residual stream before every block.
        delta: at every block's output.
        tokens: the pairs' token ids.
        embed: delta at the row that the embedding looks up.
        final_scale: whole step of the final norm's scale.
        head_in: the unembedding's input at the scored positions.
        head: deltas at its output there.
        update: what becomes of each operation's step; its leaves are shared by the pairs.
        config: of the model; static.
        rows: that a pair's tokens lie in, one behind the other; static.
    """

    stream: Float[Array, "layer pair token hidden"]
    delta: Float[Array, "layer pair token hidden"]
    tokens: Int[Array, "pair token"]
    embed: Float[Array, "pair token hidden"]
    final_scale: Float[Array, "pair hidden"]
    head_in: Float[Array, "pair position hidden"]
    head: Float[Array, "pair position vocab"]
    update: Update
    config: ModelConfig = struct.field(pytree_node=False)
    rows: int = struct.field(pytree_node=False, default=1)

    @property
    def pairs(self) -> int:
        """How many pairs."""
        return self.tokens.shape[0]

    def pair_axes(self) -> "StepCheckpoints":
        """The pair axis of every leaf, for `vmap`."""
        axes = jax.tree.map(lambda _: 0, self)
        shared = jax.tree.map(lambda _: None, self.update)
        return axes.replace(stream=1, delta=1, update=shared)

    def as_taps(self) -> TapSource:
        """The steps as taps: what each adds to an operation's output, given its input.

        Leaves keep the pair axis: `vmap` `layer` over it (`LAYER_AXES`), and `inject` what that
        returns.
        """
        head, tied = LinearStep(self.head_in, self.head), self.config.tied
        looked_up = EmbedStep(self.tokens, self.embed, None) if tied else None
        table = EmbedStep(self.tokens, self.embed, head if tied else None)
        update = self.update
        kept = KeptOfLayer(self.stream, self.delta, update.blocks(), update.masks())
        tree: dict[str, Any] = {"embed": None, "blocks": kept, "final_norm": None, "unembed": None}
        if update.moves("embed"):
            tree["embed"] = update.embed(table)
        if update.moves("final_norm"):
            tree["final_norm"] = ScaleStep(update.final_norm(self.final_scale))
        if update.moves("unembed"):
            tree["unembed"] = update.unembed(UnembedStep(head, looked_up))
        return TapSource(tree, rule=lambda step, x: step(x), layer=self._layer)

    def _layer(self, layer: Layer, kept: KeptOfLayer) -> dict[str, OperationStep]:
        names = tuple(op.name for op in self.config.table if self.update.moves(op.name))
        return layer_steps(self.config, layer, kept, self.update, Asked(names, self.rows))


class Asked(NamedTuple):
    """Of which operations of a block steps are formed.

    Attributes:
        names: of the operations; None for all.
        rows: that a pair's tokens lie in.
    """

    names: tuple[str, ...] | None = None
    rows: int = 1


# Axes of `StepCheckpoints.as_taps().layer`: pairs share the block and what the update says of it.
LAYER_AXES = (None, KeptOfLayer(0, 0, None, None))  # type: ignore[arg-type]


def layer_steps(
    config: ModelConfig,
    layer: Layer,
    kept: KeptOfLayer,
    update: Update,
    asked: Asked = Asked(),  # noqa: B008 (immutable)
) -> dict[str, Any]:
    """One pair's steps of a block's operations, from what is kept of the pair there."""
    part, masks = kept.part, kept.masks
    chosen = [op for op in config.table if asked.names is None or op.name in asked.names]
    if not chosen:
        return {}
    stream, delta = (v.reshape(asked.rows, -1, config.hidden) for v in (kept.stream, kept.delta))

    def run(taps: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        out = block(config, layer, stream, BlockTaps(taps))
        return out.streams["resid_post"], out.inputs

    every = block_zeros(config, *stream.shape[:2], dtype=stream.dtype)
    zeros = {op.name: every[op.name] for op in chosen}
    _, pull, inputs = jax.vjp(run, zeros, has_aux=True)
    (deltas,) = pull(delta)
    steps: dict[str, Any] = {}
    for op in chosen:
        x, d = (v.reshape(1, -1, v.shape[-1]) for v in (inputs[op.reads], deltas[op.name]))
        mask = None if masks is None else masks[op.name].astype(d.dtype)
        if isinstance(op, Linear):
            step = update.linear(part, op, LinearStep(x[0], d[0], op.biased))
            steps[op.name] = step if mask is None else step.masked(mask)
        else:
            g = update.scale(part, op, scale_gradient(op, x, d)[0])
            steps[op.name] = ScaleStep(tile_scale(op, g if mask is None else g * mask[0]))
    return steps


def form_steps(
    params: Params, batch: PairBatch, update: Update
) -> tuple[StepCheckpoints, PairStatistics]:
    """The step of each pair of a batch, from one backward pass, without forming a gradient."""
    losses, g = gradient(params, batch)
    # What cancels in a sum of squares may round to less than nothing.
    norm = jnp.sqrt(jnp.maximum(squared_norm(g, params.config, update.moved), 0))
    dtype = params.embed.dtype
    # In bfloat16 the rate itself would round, the same way for every pair: scale in float32, then
    # round what is scaled.
    rate = update.rate(norm)

    def scaled(d: Array, axis: int = 0) -> Array:
        factor = jnp.expand_dims(rate, [i for i in range(d.ndim) if i != axis])
        return (factor * d.astype(rate.dtype)).astype(dtype)

    final = jnp.einsum("pth,pth->ph", g.final_unit, g.final_norm)
    steps = StepCheckpoints(
        stream=g.inputs[RESIDUAL],
        delta=scaled(g.output, 1),
        tokens=g.tokens,
        embed=scaled(g.embed),
        final_scale=scaled(final),
        head_in=g.head_in,
        head=scaled(g.head),
        update=update,
        config=params.config,
        rows=batch.loss.rows,
    )
    return steps, PairStatistics(losses, norm)
