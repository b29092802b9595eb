"""Engine `reverse`: every readout pulled back through the model a block at a time, and contracted there with every pair's step.

The programs of one block. Who calls them goes from the last block to the first; the pairs' steps of a block are formed once
and serve every batch of prompts, and neither they nor the readouts' gradients outlive the block.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smda_jax.data.batches import PromptBatch
from smda_jax.data.targets import Targets
from smda_jax.jacobian.factors import Factors, block_steps
from smda_jax.jacobian.injection import inject, weigh_unembedding
from smda_jax.jacobian.readout import log_probability
from smda_jax.kernels.contraction import contract
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import (
    LINEAR,
    SCALE,
    Block,
    Params,
    TapSource,
    at_token,
    at_tokens,
    block,
    block_zeros,
    embed,
    head_zeros,
    run_blocks,
    unembed,
)
from smda_jax.model.precision import jit, wide

_SOURCE = LINEAR | SCALE
_EVERY_TOKEN = ("attn_norm", "k", "v")  # a read at one token depends on these everywhere, on the block's other operations there


def _total(spec: str, a: Array, b: Array) -> Array:
    """What adds up over operations and layers does so in at least float32, whatever the passes run in."""
    return jnp.einsum(spec, a, b, preferred_element_type=wide(a.dtype))


class Matrices(NamedTuple):
    """Steps of all pairs in one block, pairs last: weights as matrices, biases, norm scales."""

    w: dict[str, Float[Array, "in out pair"]]
    b: dict[str, Float[Array, "out pair"]]
    scale: dict[str, Float[Array, "hidden pair"]]


@partial(jit, static_argnames="config")
def matrices(
    config: ModelConfig,
    p: Block,
    stream: tuple[Float[Array, "_ _ hidden"], ...],
    delta: tuple[Float[Array, "_ _ hidden"], ...],
    scaling: Block | None,
) -> Matrices:
    """The pairs' steps in the block `p`, from what the `Factors` of each group keep of it."""

    def group(stream: Array, delta: Array) -> Matrices:
        steps = jax.vmap(partial(block_steps, config, p, scaling=scaling))(stream, delta)
        merged = {name: jax.vmap(lambda one: one.merged())(steps[name]) for name in LINEAR}
        return Matrices(
            {name: step.w for name, step in merged.items()},
            {name: step.b for name, step in merged.items() if step.b is not None},
            {name: steps[name].g for name in SCALE},
        )

    groups = [group(*one) for one in zip(stream, delta, strict=True)]
    # Turned round only when put together: products that XLA lets write pairs last take four times as long.
    together = jax.lax.optimization_barrier(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), together)


class Start(NamedTuple):
    """Where a pull-back starts: streams that enter the blocks, gradient at the last block's output, and what the head adds."""

    stream: Float[Array, "layer prompt token hidden"]
    g: Float[Array, "readout prompt token hidden"]
    total: Float[Array, "pair prompt readout"]


@partial(jit, static_argnames=("config", "targets"))
def start_y(config: ModelConfig, params: Params, steps: tuple[Factors, ...], batch: PromptBatch, targets: Targets) -> Start:
    """Runs prompts, and pulls Y back through the head: one readout per row (prompt and target history)."""
    tokens, answer = jnp.asarray(batch.tokens), jnp.asarray(batch.answer)
    hidden = run_blocks(config, params, embed(params, tokens), keep=("resid_pre",))

    def behaviour(x: Array, tree: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        logits, inputs = unembed(config, params, x, TapSource(tree))
        return log_probability(logits, targets), inputs

    zeros = head_zeros(config, *answer.shape, dtype=hidden.x.dtype)
    y, pull, inputs = jax.vjp(behaviour, at_tokens(hidden.x, answer), zeros, has_aux=True)
    # Prompts do not interact: the gradient of their sum is each one's own.
    at_answer, g = pull(jnp.ones_like(y))

    def through(tree: dict[str, Any]) -> Float[Array, "pair prompt"]:
        final = _total("ph,bh->pb", tree["final_norm"].g, jnp.sum(inputs["final_unit"] * g["final_norm"], axis=1))
        return final + weigh_unembedding(tree["unembed"], inputs["final_in"], g["unembed"])

    total = jnp.concatenate([through(group.steps().tree) for group in steps])
    _, spread = jax.vjp(lambda x: at_tokens(x, answer), hidden.x)
    return Start(hidden.kept["resid_pre"], spread(at_answer)[0][None], total[:, :, None])


@partial(jit, static_argnames=("config", "pairs", "readouts"))
def start_h(config: ModelConfig, params: Params, tokens: Int[Array, "prompt token"], pairs: int, readouts: int) -> Start:
    """Runs prompts through the blocks of `params`; readouts of a stream within the last of them start there."""
    x = embed(params, jnp.asarray(tokens))
    kept = run_blocks(config, params, x, keep=("resid_pre",)).kept["resid_pre"]
    g = jnp.zeros((readouts, *x.shape), x.dtype)
    return Start(kept, g, jnp.zeros((pairs, x.shape[0], readouts), wide(x.dtype)))


class Reads(NamedTuple):
    """Readouts of a stream: at which token, in which direction."""

    at: Int[Array | np.ndarray, " prompt"]
    direction: Float[Array, "readout prompt hidden"]


@partial(jit, static_argnames=("config", "stream"))
def pull_block(
    config: ModelConfig,
    p: Block,
    x: Float[Array, "prompt token hidden"],
    g: Float[Array, "readout prompt token hidden"],
    total: Float[Array, "pair prompt readout"],
    steps: Matrices,
    reads: Reads | None,
    stream: str = "resid_post",
) -> tuple[Float[Array, "readout prompt token hidden"], Float[Array, "pair prompt readout"]]:
    """Gradient of readouts before the block, from that after it; and `total` with what the block's steps change of them.

    `reads` are readouts of `stream` within this block, at one token each; `g` is nought then, for nothing above is read.
    """

    def run(x: Array, zeros: dict[str, Array]) -> tuple[tuple[Array, Array | None], dict[str, Array]]:
        streams, _, inputs = block(config, p, x, zeros)
        at = None if reads is None else at_token(streams[stream], jnp.asarray(reads.at))
        return (streams["resid_post"], at), inputs

    _, pull, inputs = jax.vjp(run, x, block_zeros(config, *x.shape[:2], dtype=x.dtype), has_aux=True)
    g, deltas = jax.vmap(pull)((g, None if reads is None else reads.direction))

    def reached(name: str) -> tuple[Array, Array]:
        x, delta = inputs[_SOURCE[name]], deltas[name]
        if reads is None or name in _EVERY_TOKEN:
            return x, delta
        at = jnp.asarray(reads.at)
        return at_token(x, at)[:, None], jax.vmap(lambda one: at_token(one, at)[:, None])(delta)

    for name, w in steps.w.items():
        total = total + contract(*reached(name), w)
    for name, b in steps.b.items():
        total = total + _total("op,rbo->pbr", b, deltas[name].sum(axis=2))
    for name, scale in steps.scale.items():
        x, delta = reached(name)
        total = total + _total("hp,rbh->pbr", scale, jnp.sum(x[None] * delta, axis=2))
    return g, total


@partial(jit, static_argnames="config")
def pull_embedding(
    config: ModelConfig,
    steps: tuple[Factors, ...],
    tokens: Int[Array | np.ndarray, "prompt token"],
    seen: Int[Array | np.ndarray, " kind"],
    g: Float[Array, "readout prompt token hidden"],
    total: Float[Array, "pair prompt readout"],
) -> Float[Array, "pair prompt readout"]:
    """`total` with what the embedding's step changes. `seen` holds every token id of the batch, ascending; it may hold others.

    A token's row moves the same way wherever it stands.
    """
    tables = [group.steps().tree["embed"] for group in steps]
    rows = jnp.concatenate([inject(table, jnp.asarray(seen)[None])[:, 0] for table in tables])
    index = jnp.searchsorted(jnp.asarray(seen), jnp.asarray(tokens))
    each = (index, jnp.swapaxes(g, 0, 1))
    out = jax.lax.map(lambda one: _total("pth,rth->pr", rows[:, one[0]], one[1]), each)
    return total + jnp.swapaxes(out, 0, 1)
