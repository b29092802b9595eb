"""Engine `reverse`: every readout pulled back to the taps of the model, and contracted there with every pair's step.

Both sides go through the model a layer at a time: the readouts' gradients come down from above, the pairs' factors are got
back from what `Factors` keeps, the two are contracted, and neither outlives its layer.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smda_jax.data.batches import PromptBatch
from smda_jax.data.targets import Targets
from smda_jax.jacobian.factors import Factors
from smda_jax.jacobian.injection import LinearStep, MergedStep, ScaleStep, inject
from smda_jax.jacobian.readout import Site, log_probability
from smda_jax.kernels.contraction import injected, materialised, materialising_is_cheaper
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import (
    LINEAR,
    SCALE,
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
    up_to,
)
from smda_jax.model.precision import jit

_SOURCE = LINEAR | SCALE


@partial(jit, static_argnames=("config", "targets"))
def reverse_y(
    config: ModelConfig,
    params: Params,
    steps: Factors,
    batch: PromptBatch,
    seen: Int[Array | np.ndarray, " kind"],
    targets: Targets,
) -> Float[Array, "pair prompt"]:
    """First-order change of Y of every prompt under every pair's step: one pull-back per prompt.

    `seen` holds every token id of the batch, ascending; it may hold others.
    """
    tokens, answer = jnp.asarray(batch.tokens), jnp.asarray(batch.answer)
    taps = steps.steps()
    hidden = run_blocks(config, params, embed(params, tokens), keep=("resid_pre",))

    def behaviour(x: Array, tree: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        logits, inputs = unembed(config, params, x, TapSource(tree))
        return log_probability(logits, targets), inputs

    zeros = head_zeros(config, *answer.shape, dtype=hidden.x.dtype)
    y, pull, inputs = jax.vjp(behaviour, at_tokens(hidden.x, answer), zeros, has_aux=True)
    # Prompts do not interact: the gradient of their sum is each one's own.
    at_answer, g = pull(jnp.ones_like(y))
    total = contract(taps.tree["final_norm"], inputs["final_unit"], g["final_norm"][None])
    total = total + contract(taps.tree["unembed"], inputs["final_in"], g["unembed"][None])
    _, spread = jax.vjp(lambda x: at_tokens(x, answer), hidden.x)
    total = total + _sweep(config, params, steps, tokens, seen, hidden.kept["resid_pre"], spread(at_answer)[0][None])
    return total[:, :, 0].reshape(steps.pairs, -1, len(targets.rows)).sum(axis=-1)


@partial(jit, static_argnames=("config", "site"))
def reverse_h(
    config: ModelConfig,
    params: Params,
    steps: Factors,
    tokens: Int[Array | np.ndarray, "prompt token"],
    seen: Int[Array | np.ndarray, " kind"],
    eot: Int[Array | np.ndarray, " prompt"],
    direction: Float[Array, "readout prompt hidden"],
    site: Site,
) -> Float[Array, "pair prompt readout"]:
    """First-order change of `direction · h` of every prompt under every pair's step: one pull-back per readout and prompt.

    Only the blocks up to the site's layer are run, and no token beyond the end of turn is needed.
    """
    tokens, eot = jnp.asarray(tokens), jnp.asarray(eot)
    below = up_to(params, site.layer)
    kept = run_blocks(config, below, embed(params, tokens), keep=("resid_pre",)).kept["resid_pre"]
    nothing = jnp.zeros((direction.shape[0], *kept.shape[1:]), kept.dtype)
    return _sweep(config, below, steps, tokens, seen, kept, nothing, (site, eot, direction))


def _sweep(
    config: ModelConfig,
    params: Params,
    steps: Factors,
    tokens: Int[Array, "prompt token"],
    seen: Int[Array | np.ndarray, " kind"],
    stream: Float[Array, "layer prompt token hidden"],
    g: Float[Array, "readout prompt token hidden"],
    read: tuple[Site, Array, Array] | None = None,
) -> Float[Array, "pair prompt readout"]:
    """Contracts readouts with steps, from the last block of `params` down to the embedding.

    `g` is the readouts' gradient at the last block's output; `read` = (site, token, gradient there) that of readouts of a
    stream within the last block.
    """
    taps, last = steps.steps(), stream.shape[0] - 1
    below = jax.tree.map(lambda leaf: leaf[: last + 1], taps.tree["blocks"])

    def body(carry: tuple[Array, Array], xs: Any) -> tuple[tuple[Array, Array], None]:
        g, total = carry
        index, p, x, tap = xs

        def run(x: Array, zeros: dict[str, Array]) -> tuple[tuple[Array, Array | None], dict[str, Array]]:
            streams, _, inputs = block(config, p, x, zeros)
            at = None if read is None else at_token(streams[read[0].stream], read[1])
            return (streams["resid_post"], at), inputs

        zeros = block_zeros(config, *x.shape[:2], dtype=x.dtype)
        _, pull, inputs = jax.vjp(run, x, zeros, has_aux=True)
        at = None if read is None else jnp.where(index == last, read[2], jnp.zeros_like(read[2]))
        g, deltas = jax.vmap(pull)((g, at))
        for name, step in jax.vmap(taps.layer, Factors.block_axes)(p, tap).items():
            total = total + contract(step, inputs[_SOURCE[name]], deltas[name])
        return (g, total), None

    start = (g, jnp.zeros((steps.pairs, g.shape[1], g.shape[0]), g.dtype))
    (g, total), _ = jax.lax.scan(body, start, (jnp.arange(last + 1), params.blocks, stream, below), reverse=True)
    # A token's row of the embedding moves the same way wherever it stands.
    rows = inject(taps.tree["embed"], jnp.asarray(seen)[None])[:, 0]
    index = jnp.searchsorted(jnp.asarray(seen), tokens)
    return total + injected(index, g, lambda x: rows[:, x], max(1, tokens.shape[0] // steps.pairs))


def contract(step: Any, x: Array, g: Float[Array, "readout prompt token out"]) -> Float[Array, "pair prompt readout"]:
    """Change of readouts through one operation: `Σ_t step[i](x[n])[t] · g[r,n,t]`, by whichever way takes less work."""
    pairs = jax.tree.leaves(step)[0].shape[0]
    readouts, prompts, tokens, out = g.shape
    if isinstance(step, ScaleStep):
        return jnp.einsum("ph,rbh->pbr", step.g, jnp.sum(x[None] * g, axis=2))
    if isinstance(step, LinearStep | MergedStep):
        count = step.a.shape[1] if isinstance(step, LinearStep) else 0
        if materialising_is_cheaper(pairs, tokens, prompts, readouts, count, (x.shape[-1], out)):
            whole = jax.vmap(lambda one: one.merged())(step)
            total = materialised(x, g, whole.w)
            return total if whole.b is None else total + jnp.einsum("po,rbo->pbr", whole.b, g.sum(axis=2))
    return injected(x, g, partial(inject, step), max(1, prompts // pairs))
