"""Every readout pulled back through the model a layer at a time, and contracted there with steps.

The programs of one layer. Who calls them goes from the last layer to the first; the pairs' steps of
a layer are formed once and serve every batch of prompts, and neither they nor the readouts'
gradients outlive the layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from smda_jax.data.batch.batches import PromptBatch
from smda_jax.kernels.contraction import contract
from smda_jax.model.config import ModelConfig
from smda_jax.model.forward import (
    RESIDUAL,
    BlockTaps,
    TapSource,
    Wanted,
    at_token,
    at_tokens,
    block,
    block_zeros,
    embed,
    head_zeros,
    run_blocks,
    scale_embedding,
    unembed,
)
from smda_jax.model.operations import Linear, Reach
from smda_jax.model.params import Layer, Params
from smda_jax.pytree import pytree
from smda_jax.reading.behaviours.contract import Behaviour, Seen
from smda_jax.reading.readout import given_of, spot_read
from smda_jax.runtime.devices import Replicated, Rows
from smda_jax.runtime.precision import wide
from smda_jax.runtime.programs import program
from smda_jax.steps.checkpoints import (
    LAYER_AXES,
    Asked,
    KeptOfLayer,
    StepCheckpoints,
    layer_steps,
)
from smda_jax.steps.injection import inject
from smda_jax.steps.updates.contract import Update


def _total(spec: str, a: Array, b: Array) -> Array:
    """What adds up over operations and layers does so in at least float32."""
    return jnp.einsum(spec, a, b, preferred_element_type=wide(a.dtype))


class Matrices(NamedTuple):
    """Steps of all pairs in one layer, pairs last: weights as matrices, biases, norm scales."""

    w: dict[str, Float[Array, "in out pair"]]
    b: dict[str, Float[Array, "out pair"]]
    scale: dict[str, Float[Array, "hidden pair"]]


MATRICES_OF_PAIRS = Matrices(Rows(2), Rows(1), Rows(1))  # type: ignore[arg-type]


@program(Replicated(), Rows(), Replicated(), result=MATRICES_OF_PAIRS, static=("config", "asked"))
def matrices(
    layer: Layer,
    groups: tuple[KeptOfLayer, ...],
    update: Update,
    config: ModelConfig,
    asked: Asked = Asked(),  # noqa: B008 (immutable)
) -> Matrices:
    """The pairs' steps in a layer, from what each group of pairs keeps of it."""

    def of_group(kept: KeptOfLayer) -> Matrices:
        def one(layer: Layer, kept: KeptOfLayer) -> dict[str, Any]:
            return layer_steps(config, layer, kept, update, asked)

        steps = jax.vmap(one, LAYER_AXES)(layer, kept)
        linears, scales = (
            [op for op in some if op.name in steps]
            for some in (config.table.linears, config.table.scales)
        )
        merged = {op.name: jax.vmap(lambda s: s.merged())(steps[op.name]) for op in linears}
        return Matrices(
            {name: step.w for name, step in merged.items()},
            {name: step.b for name, step in merged.items() if step.b is not None},
            {op.name: steps[op.name].g for op in scales},
        )

    found = [of_group(kept) for kept in groups]
    # Turned round only when put together: products that XLA lets write pairs last take four times
    # as long.
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)
    together = jax.lax.optimization_barrier(joined)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), together)


class Start(NamedTuple):
    """Where a pull-back starts.

    Attributes:
        stream: residual streams that enter the layers.
        g: gradient at the last layer's output.
        total: what the steps above have changed of the readouts.
        at_spot: gradient with respect to the stream at the behaviour's spot, for readouts that look
            at it; None for others.
    """

    stream: Float[Array, "layer prompt token hidden"]
    g: Float[Array, "readout prompt token hidden"]
    total: Float[Array, "pair prompt readout"]
    at_spot: Float[Array, "readout prompt hidden"] | None = None


START_OF_PROMPTS = Start(Rows(1), Rows(1), Rows(1))  # type: ignore[arg-type]
START_OF_STREAM = START_OF_PROMPTS._replace(at_spot=Rows(1))  # type: ignore[arg-type]


@program(Replicated(), Replicated(), Rows(), result=START_OF_PROMPTS, static=("behaviour",))
def start_y(
    params: Params, steps: tuple[StepCheckpoints, ...], batch: PromptBatch, behaviour: Behaviour
) -> Start:
    """Runs prompts, and pulls Y back through the head.

    One readout per row (a prompt and what is appended).
    """
    tokens, answers = jnp.asarray(batch.tokens), jnp.asarray(batch.answers)
    wanted = Wanted(spot_read(behaviour, batch, 0), (RESIDUAL,))
    hidden = run_blocks(params, embed(params, tokens), wanted=wanted)
    given, pairs = given_of(batch), sum(group.pairs for group in steps)
    at_rows = jnp.zeros((len(tokens), params.config.hidden), hidden.x.dtype)
    at_rows = hidden.reads[0][0, :, 0] if hidden.reads else at_rows
    if not answers.shape[1]:  # no logits are read

        def of_stream(h: Array) -> Array:
            none = jnp.zeros((len(tokens), 0, 0), h.dtype)
            return behaviour.value(Seen(none, h[:: batch.copies], given))

        y, pull = jax.vjp(of_stream, at_rows)
        (at_spot,) = pull(jnp.ones_like(y))
        total = jnp.zeros((pairs, len(tokens), 1), wide(hidden.x.dtype))
        start = jnp.zeros((1, *hidden.x.shape), hidden.x.dtype)
        return Start(hidden.kept[RESIDUAL], start, total, at_spot[None])

    def behaviour_of(x: Array, tree: dict[str, Array], h: Array) -> tuple[Array, dict[str, Array]]:
        logits, inputs = unembed(params, x, TapSource(tree))
        logits = logits.reshape(len(tokens), -1, logits.shape[-1])
        return behaviour.value(Seen(logits, h[:: batch.copies], given)), inputs

    zeros = head_zeros(params.config, *answers.shape, dtype=hidden.x.dtype)
    primal = at_tokens(hidden.x, answers)
    y, pull, inputs = jax.vjp(behaviour_of, primal, zeros, at_rows, has_aux=True)
    # Prompts do not interact: the gradient of their sum is each one's own.
    at_answers, g, at_spot = pull(jnp.ones_like(y))

    def through(tree: dict[str, Any]) -> Float[Array, "pair prompt"]:
        rows, pairs = len(tokens), tree["blocks"].stream.shape[1]
        found = jnp.zeros((pairs, rows), wide(hidden.x.dtype))
        if tree["final_norm"] is not None:
            scale = jnp.sum(inputs["final_unit"] * g["final_norm"], axis=1)
            found = found + _total("ph,bh->pb", tree["final_norm"].g, scale)
        if tree["unembed"] is not None:
            head = tree["unembed"].inner_products(inputs["final_in"], g["unembed"])
            found = found + head.astype(found.dtype)
        return found

    total = jnp.concatenate([through(group.as_taps().tree) for group in steps])
    _, spread = jax.vjp(lambda x: at_tokens(x, answers), hidden.x)
    own = None if behaviour.spot is None else at_spot[None]
    return Start(hidden.kept[RESIDUAL], spread(at_answers)[0][None], total[:, :, None], own)


@program(Replicated(), Rows(), result=START_OF_PROMPTS, static=("pairs", "readouts"))
def start_h(params: Params, tokens: Int[Array, "prompt token"], pairs: int, readouts: int) -> Start:
    """Runs prompts through the layers of `params`; readouts of a stream in the last start there."""
    x = embed(params, jnp.asarray(tokens))
    kept = run_blocks(params, x, wanted=Wanted(keep=(RESIDUAL,))).kept[RESIDUAL]
    g = jnp.zeros((readouts, *x.shape), x.dtype)
    return Start(kept, g, jnp.zeros((pairs, x.shape[0], readouts), wide(x.dtype)))


@pytree
class Reads:
    """Readouts of a stream within a layer.

    Attributes:
        at: the token that is read.
        direction: gradient of each readout with respect to the stream there.
        alone: whether the readouts look at nothing above the layer; static.
    """

    at: Int[Array | np.ndarray, " prompt"]
    direction: Float[Array, "readout prompt hidden"]
    alone: bool = struct.field(pytree_node=False, default=True)


READS_OF_PROMPTS = Reads(Rows(0), Rows(1))  # type: ignore[arg-type]


@pytree
class Pulled:
    """Prompts at the output of a layer, on the way down.

    Attributes:
        x: residual stream that enters the layer.
        g: gradient of the readouts at the layer's output.
        total: what the steps above have changed of the readouts.
        reads: readouts of a stream within this layer.
    """

    x: Float[Array, "prompt token hidden"]
    g: Float[Array, "readout prompt token hidden"]
    total: Float[Array, "pair prompt readout"]
    reads: Reads | None


@program(
    Replicated(),
    Pulled(Rows(0), Rows(1), Rows(1), READS_OF_PROMPTS),  # type: ignore[arg-type]
    Replicated(),
    result=(Rows(1), Rows(1)),
    static=("config", "stream"),
)
def pull_layer(
    layer: Layer, pulled: Pulled, steps: Matrices, config: ModelConfig, stream: str = "resid_post"
) -> tuple[Float[Array, "readout prompt token hidden"], Float[Array, "pair prompt readout"]]:
    """Gradient of readouts before the layer; and `total` with what its steps change of them."""
    x, total, reads = pulled.x, pulled.total, pulled.reads

    def run(
        x: Array, zeros: dict[str, Array]
    ) -> tuple[tuple[Array, Array | None], dict[str, Array]]:
        out = block(config, layer, x, BlockTaps(zeros))
        at = None if reads is None else at_token(out.streams[stream], jnp.asarray(reads.at))
        return (out.streams["resid_post"], at), out.inputs

    every = block_zeros(config, *x.shape[:2], dtype=x.dtype)
    chosen = [op for op in config.table if op.name in steps.w or op.name in steps.scale]
    zeros = {op.name: every[op.name] for op in chosen}
    _, pull, inputs = jax.vjp(run, x, zeros, has_aux=True)
    g, deltas = jax.vmap(pull)((pulled.g, None if reads is None else reads.direction))

    def reached(op: Any) -> tuple[Array, Array]:
        """Input and deltas of an operation, at the tokens where it matters."""
        x, delta = inputs[op.reads], deltas[op.name]
        if reads is None or not reads.alone or op.reach is Reach.EVERY_TOKEN:
            return x, delta
        at = jnp.asarray(reads.at)
        return at_token(x, at)[:, None], jax.vmap(lambda d: at_token(d, at)[:, None])(delta)

    for op in chosen:
        x_op, delta = reached(op)
        if isinstance(op, Linear):
            total = total + contract(x_op, delta, steps.w[op.name])
            if op.name in steps.b:
                bias = deltas[op.name].sum(axis=2)
                total = total + _total("op,rbo->pbr", steps.b[op.name], bias)
        else:
            scale = jnp.sum(x_op[None] * delta, axis=2)
            total = total + _total("hp,rbh->pbr", steps.scale[op.name], scale)
    return g, total


@program(Replicated(), Rows(), Replicated(), Rows(1), Rows(1), result=Rows(1))
def pull_embedding(
    steps: tuple[StepCheckpoints, ...],
    tokens: Int[Array | np.ndarray, "prompt token"],
    seen: Int[Array | np.ndarray, " kind"],
    g: Float[Array, "readout prompt token hidden"],
    total: Float[Array, "pair prompt readout"],
) -> Float[Array, "pair prompt readout"]:
    """`total` with what the embedding's step changes, if it moves.

    `seen` holds every token id of the batch, ascending; it may hold others. A token's row moves the
    same way wherever it stands.
    """
    if not steps[0].update.moves("embed"):
        return total
    tables = [group.as_taps().tree["embed"] for group in steps]
    rows = jnp.concatenate([inject(table, jnp.asarray(seen)[None])[:, 0] for table in tables])
    rows = scale_embedding(steps[0].config, rows)
    index = jnp.searchsorted(jnp.asarray(seen), jnp.asarray(tokens))

    def of_prompt(one: tuple[Array, Array]) -> Array:
        return _total("pth,rth->pr", rows[:, one[0]], one[1])

    out = jax.lax.map(of_prompt, (index, jnp.swapaxes(g, 0, 1)))
    return total + jnp.swapaxes(out, 0, 1)
