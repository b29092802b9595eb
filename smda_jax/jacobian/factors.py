"""Per-pair loss gradients in factored form: operation inputs and the loss gradient at operation outputs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from smda_jax.data.batches import PairBatch
from smda_jax.jacobian.injection import EmbedStep, LinearStep, ScaleStep, UnembedStep
from smda_jax.model.attention import Packing
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import (
    EVERY_INPUT,
    LINEAR,
    NO_TAPS,
    SCALE,
    Block,
    Linear,
    Params,
    TapSource,
    block,
    block_zeros,
    embed,
    head_zeros,
    run_blocks,
    unembed,
)
from smda_jax.model.precision import wide
from smda_jax.pytree import pytree


@pytree
class Gradient:
    """Loss gradients of a block of pairs, with respect to every parameter, in factored form.

    Attributes:
        inputs: of the blocks' operations, by the input's name; and `resid_pre`.
        deltas: loss gradient at the outputs of the blocks' operations.
        tokens: the pairs' token ids.
        embed: loss gradient at the embedding's output.
        final_unit: the final norm's input, before its scale, at the scored positions.
        final_norm: loss gradient at the final norm's output there.
        head_in: the unembedding's input there.
        head: loss gradient at the logits there.
        config: of the model.
    """

    inputs: dict[str, Float[Array, "layer pair token _"]]
    deltas: dict[str, Float[Array, "layer pair token _"]]
    tokens: Int[Array, "pair token"]
    embed: Float[Array, "pair token hidden"]
    final_unit: Float[Array, "pair position hidden"]
    final_norm: Float[Array, "pair position hidden"]
    head_in: Float[Array, "pair position hidden"]
    head: Float[Array, "pair position vocab"]
    config: ModelConfig = struct.field(pytree_node=False)


@pytree
class Factors:
    """Steps of a block of pairs, each from the same base weights; deltas carry -η.

    Of each block only the residual stream that enters it and the gradient at its output are kept: `hidden` numbers per token
    instead of some twenty times as many. An engine that comes to a layer gets its factors back from one backward pass
    through that block.

    Attributes:
        stream: residual stream before every block.
        delta: at every block's output.
        tokens: the pairs' token ids.
        embed: delta at the embedding's output.
        final_scale: whole step of the final norm's scale.
        head_in: the unembedding's input at the scored positions.
        head: deltas at the logits there.
        scaling: diagonal preconditioner of the update rule, shaped like the parameters; None for plain SGD.
        config: of the model.
    """

    stream: Float[Array, "layer pair token hidden"]
    delta: Float[Array, "layer pair token hidden"]
    tokens: Int[Array, "pair token"]
    embed: Float[Array, "pair token hidden"]
    final_scale: Float[Array, "pair hidden"]
    head_in: Float[Array, "pair position hidden"]
    head: Float[Array, "pair position vocab"]
    scaling: Params | None
    config: ModelConfig = struct.field(pytree_node=False)

    @property
    def pairs(self) -> int:
        """How many pairs."""
        return self.tokens.shape[0]

    def axes(self) -> Any:
        """The pair axis of every leaf, for `vmap`."""
        first = jax.tree.map(lambda _: 0, self)
        return first.replace(stream=1, delta=1, scaling=None)

    def steps(self) -> TapSource:
        """The steps as taps: what each adds at every operation, given the operation's input.

        Leaves keep the pair axis: `vmap` `layer` over it (`block_axes` says where), and `inject` what it returns.
        """
        head = LinearStep(self.head_in, self.head)
        tied, scaling = self.config.tied, self.scaling
        table = EmbedStep(self.tokens, self.embed, head if tied else None, None if scaling is None else scaling.embed)
        looked_up = table.replace(head=None, scaling=None) if tied else None  # type: ignore[attr-defined]
        top = None if scaling is None else scaling.embed if scaling.unembed is None else scaling.unembed
        final = (
            self.final_scale
            if scaling is None
            else self.final_scale * jnp.broadcast_to(scaling.final_norm, self.final_scale.shape)
        )
        tree = {
            "embed": table,
            "blocks": (self.stream, self.delta, None if scaling is None else scaling.blocks),
            "final_norm": ScaleStep(final),
            "unembed": UnembedStep(head, looked_up, top),
        }
        return TapSource(tree, rule=lambda step, x: step(x), layer=self._layer)

    block_axes = (None, (0, 0, None))

    def _layer(self, p: Block, blocks: tuple[Array, Array, Block | None]) -> dict[str, Any]:
        stream, delta, scaling = blocks
        return block_steps(self.config, p, stream, delta, scaling)


class PairStatistics(NamedTuple):
    """Loss (nats per scored token) and the norm of its gradient over all parameters, per pair."""

    loss: Float[Array | np.ndarray, " pair"]
    gradient_norm: Float[Array | np.ndarray, " pair"]


def block_steps(
    config: ModelConfig,
    p: Block,
    stream: Float[Array, "token hidden"],
    delta: Float[Array, "token hidden"],
    scaling: Block | None = None,
) -> dict[str, Any]:
    """One pair's steps of a block's operations, from what enters the block and the delta at its output.

    A linear operation's step is kept as two factors where they are smaller than its matrix, and merged where they are not:
    with s tokens, both storage and the work of an injection are s·(in + out) factored and in·out merged. Real models are
    factored throughout; models narrower than the pairs are long are not.
    """

    def run(taps: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        streams, _, inputs = block(config, p, stream[None], taps)
        return streams["resid_post"], inputs

    _, pull, inputs = jax.vjp(run, block_zeros(config, 1, stream.shape[0], dtype=stream.dtype), has_aux=True)
    (deltas,) = pull(delta[None])
    steps: dict[str, Any] = {}
    for name, source in LINEAR.items():
        step = LinearStep(inputs[source][0], deltas[name][0], name in config.biased)
        if scaling is not None:
            own, merged = getattr(scaling, name), step.merged()
            step = merged.replace(w=merged.w * own.w.T, b=None if own.b is None else merged.b * own.b)  # type: ignore[attr-defined]
        elif step.a.shape[0] * (step.a.shape[1] + step.d.shape[1]) >= step.a.shape[1] * step.d.shape[1]:
            step = step.merged()
        steps[name] = step
    for name, source in SCALE.items():
        g = jnp.einsum("th,th->h", inputs[source][0], deltas[name][0])
        steps[name] = ScaleStep(g if scaling is None else g * getattr(scaling, name))
    return steps


def scored_losses(
    config: ModelConfig, params: Params, batch: PairBatch, taps: TapSource = NO_TAPS, keep: tuple[str, ...] = ()
) -> tuple[Float[Array, " pair"], dict[str, Array]]:
    """Loss of every pair (nats per scored token), and inputs of operations: the blocks' in `keep`, the head's all.

    The tokens that all pairs share are run once, as a batch of one; what is kept is that of the rest. Pairs may be packed.
    """
    tokens, shared, past = jnp.asarray(batch.tokens), batch.shared, None
    packing = None if batch.pack is None else Packing(batch.unpack, batch.pack)
    if shared:
        past = run_blocks(config, params, embed(params, tokens[:1, :shared], taps), taps).past
    at = jnp.maximum(jnp.asarray(batch.at) - shared, 0)  # padding stands at 0
    x = embed(params, tokens[:, shared:], taps)
    hidden = run_blocks(config, params, x, taps, keep=keep, past=past, packing=packing, ends=at)
    logits, head = unembed(config, params, hidden.x, taps)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(wide(logits.dtype)), jnp.asarray(batch.target))
    weight = jnp.asarray(batch.weight, losses.dtype)
    if packing is None:
        return jnp.sum(losses * weight, axis=1), hidden.kept | head
    # Chosen before they are weighed: a loss that is not finite, times nought, would spoil the others of its lane.
    own = jnp.where(weight > 0, losses[:, None], jnp.zeros_like(weight))
    return jnp.sum(own * weight, axis=-1).ravel(), hidden.kept | head


def gradient(config: ModelConfig, params: Params, batch: PairBatch) -> tuple[Float[Array, " pair"], Gradient]:
    """One forward and one backward pass over the pairs → losses (nats per scored token) and their factored gradients.

    Taps of zeros sit at every operation's output; the gradient with respect to them is δ. A batch's rows do not interact,
    so one gradient of the summed losses gives every pair its own.
    """
    dtype, shape = params.embed.dtype, batch.tokens.shape

    def total(tree: dict[str, Any]) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        losses, inputs = scored_losses(config, params, batch, TapSource(tree), (*EVERY_INPUT, "resid_pre"))
        return losses.sum(), (losses, inputs)

    zeros = head_zeros(config, *batch.at.shape, dtype=dtype) | {
        "embed": jnp.zeros((*shape, config.hidden), dtype),
        "blocks": block_zeros(config, config.layers, *shape, dtype=dtype),
    }
    delta, (losses, inputs) = jax.grad(total, has_aux=True)(zeros)
    final_unit, head_in = inputs.pop("final_unit"), inputs.pop("final_in")
    tokens = jnp.asarray(batch.tokens)
    return losses, Gradient(
        inputs, delta["blocks"], tokens, delta["embed"], final_unit, delta["final_norm"], head_in, delta["unembed"], config
    )


def factors(
    config: ModelConfig,
    params: Params,
    batch: PairBatch,
    learning_rate: float | Array,
    scaling: Params | None = None,
    *,
    normalised: bool = False,
) -> tuple[Factors, PairStatistics]:
    """Factors of the step `-η ∂L[i]/∂θ` of each pair i, from one backward pass, without forming a gradient.

    Args:
        config: of the model.
        params: of the model.
        batch: the pairs.
        learning_rate: η.
        scaling: diagonal preconditioner, applied to the gradient.
        normalised: divide each pair's gradient by its norm.
    """
    losses, g = gradient(config, params, batch)
    norm = jnp.sqrt(squared_norm(g))
    dtype = params.embed.dtype
    # In bfloat16 the rate itself would round, the same way for every pair: scale in float32, then round what is scaled.
    rate = step_size(learning_rate, norm, normalised)

    def scaled(d: Array, axis: int = 0) -> Array:
        factor = jnp.expand_dims(rate, [i for i in range(d.ndim) if i != axis])
        return (factor * d.astype(rate.dtype)).astype(dtype)

    step = Factors(
        stream=g.inputs["resid_pre"], delta=scaled(g.deltas["down"], 1), tokens=g.tokens, embed=scaled(g.embed),
        final_scale=scaled(jnp.einsum("pth,pth->ph", g.final_unit, g.final_norm)), head_in=g.head_in, head=scaled(g.head),
        scaling=scaling, config=config,
    )  # fmt: skip
    return step, PairStatistics(losses, norm)


def step_size(learning_rate: float | Array, norm: Float[Array, " pair"], normalised: bool) -> Float[Array, " pair"]:
    """What each pair's gradient is multiplied by: -η, or -η / ‖g‖."""
    eta = jnp.broadcast_to(-jnp.asarray(learning_rate, norm.dtype), norm.shape)
    return eta / norm if normalised else eta


def squared_norm(g: Gradient) -> Float[Array, " pair"]:
    """‖∂L/∂θ‖² per pair over all parameters, a tied table once."""

    def layer(total: Array, xs: tuple[dict[str, Array], dict[str, Array]]) -> tuple[Array, None]:
        return total + _squares_of_linear(*xs) + squares_of_small(g.config, *xs), None

    return jax.lax.scan(layer, squares_outside(g), (g.inputs, g.deltas))[0]


def _squares_of_linear(inputs: dict[str, Array], deltas: dict[str, Array]) -> Float[Array, " pair"]:
    """Of one block's linear weights, without forming a gradient: `‖aᵀd‖² = Σ_{s,t} (a_s·a_t)(d_s·d_t)`."""
    grams = {name: _gram(inputs[name]) for name in dict.fromkeys(LINEAR.values())}
    return sum((jnp.sum(grams[source] * _gram(deltas[name]), axis=(1, 2)) for name, source in LINEAR.items()), jnp.zeros(()))


def squares_of_small(config: ModelConfig, inputs: dict[str, Array], deltas: dict[str, Array]) -> Float[Array, " pair"]:
    """Of one block's biases and norm scales."""
    total = [_square(_dot("pth,pth->ph", inputs[source], deltas[name])) for name, source in SCALE.items()]
    total += [_square(jnp.sum(deltas[name].astype(wide(deltas[name].dtype)), axis=1)) for name in config.biased]
    return jnp.stack(total).sum(axis=0)


def squares_outside(g: Gradient) -> Float[Array, " pair"]:
    """Of what lies outside the blocks: embedding, final norm, unembedding."""
    total = _square(_dot("pth,pth->ph", g.final_unit, g.final_norm)) + jnp.sum(_gram(g.head_in) * _gram(g.head), axis=(1, 2))
    same = (g.tokens[:, :, None] == g.tokens[:, None]).astype(g.embed.dtype)
    total = total + jnp.sum(_dot("pst,pth->psh", same, g.embed) * g.embed.astype(total.dtype), axis=(1, 2))
    if g.config.tied:  # the cross term of the table's two uses
        looked_up = jnp.take_along_axis(g.head, g.tokens[:, None], axis=2)
        cross = _dot("pas,psh->pah", looked_up, g.embed)
        total = total + 2 * jnp.sum(cross * g.head_in.astype(total.dtype), axis=(1, 2))
    return total


def _dot(spec: str, *x: Array) -> Array:
    return jnp.einsum(spec, *(v.astype(wide(v.dtype)) for v in x))


def _gram(x: Float[Array, "pair token _"]) -> Float[Array, "pair token token"]:
    return _dot("psi,pti->pst", x, x)


def _square(x: Array) -> Array:
    return jnp.sum(x.astype(wide(x.dtype)) ** 2, axis=-1)


def squares(g: Gradient, weight: Float[Array, " pair"], like: Params) -> Params:
    """`Σ_i weight[i] g[i]²`, entry by entry, shaped like the parameters."""
    dtype = wide(g.embed.dtype)

    def total(x: Array) -> Array:
        return jnp.einsum("p,p...->...", weight.astype(dtype), x.astype(dtype) ** 2)

    def layer(_: None, xs: tuple[dict[str, Array], dict[str, Array]]) -> tuple[None, dict[str, Any]]:
        inputs, deltas = xs
        out: dict[str, Any] = {name: total(jnp.sum(inputs[source] * deltas[name], axis=1)) for name, source in SCALE.items()}
        for name, source in LINEAR.items():
            b = total(deltas[name].sum(axis=1)) if name in g.config.biased else None
            out[name] = Linear(total(jnp.einsum("pso,psi->poi", deltas[name], inputs[source])), b)
        return None, out

    def tables(sums: tuple[Array, ...], one: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
        w, tokens, d, head_in, head = one
        up = jnp.einsum("sv,sh->vh", head, head_in)
        down = (up if g.config.tied else jnp.zeros_like(up)).at[tokens].add(d)
        parts = (down,) if g.config.tied else (down, up)
        return tuple(s + w.astype(dtype) * p.astype(dtype) ** 2 for s, p in zip(sums, parts, strict=True)), None

    zeros = tuple(jnp.zeros(like.embed.shape, dtype) for _ in range(1 if g.config.tied else 2))
    embeds, _ = jax.lax.scan(tables, zeros, (weight, g.tokens, g.embed, g.head_in, g.head))
    _, blocks = jax.lax.scan(layer, None, (g.inputs, g.deltas))
    final = total(jnp.sum(g.final_unit * g.final_norm, axis=1))
    return Params(embeds[0], Block(**blocks), final, None if g.config.tied else embeds[1])
