"""Engine `forward`: every pair's step pushed through the linearised model, block by block."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from smda_jax.data.batches import PromptBatch
from smda_jax.data.targets import Targets
from smda_jax.jacobian.factors import Factors
from smda_jax.jacobian.injection import inject
from smda_jax.jacobian.readout import Reading, Site, log_probability
from smda_jax.model.attention import Past
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
    head_zeros,
    unembed,
)
from smda_jax.model.precision import jit

_SOURCE = LINEAR | SCALE


@partial(jit, static_argnames=("config", "targets", "site"))
def forward(config: ModelConfig, params: Params, steps: Factors, batch: PromptBatch, targets: Targets, site: Site) -> Reading:
    """First-order change of h and Y of every prompt under every pair's step (pair axis first).

    Each block is linearised at the prompts once, and the linear map is applied to all pairs: the primal is never batched
    over pairs. The tokens that all prompts share are run once, as a batch of one, and the rest attends to their keys and
    values, in the primal and in the tangents alike.
    """
    pairs, rows, dtype = steps.pairs, batch.tokens.shape[0], params.embed.dtype
    tokens, eot, answer = (jnp.asarray(x) for x in (batch.tokens, batch.eot, batch.answer))
    taps = steps.steps()
    head, tail = tokens[:1, : batch.shared], tokens[:, batch.shared :]

    def start(ids: Array) -> tuple[Array, Array]:
        return params.embed[ids], inject(taps.tree["embed"], ids)

    def body(carry: Any, xs: Any) -> tuple[Any, None]:
        first, rest, dh = carry
        index, p, blocks = xs
        step = jax.vmap(taps.layer, Factors.block_axes)(p, blocks)
        past = dpast = None
        if batch.shared:
            first, (past, dpast), _ = _advance(config, p, step, site, first, past, dpast, jnp.zeros(1, jnp.int32))
        rest, _, read = _advance(config, p, step, site, rest, past, dpast, eot - batch.shared)
        return (first, rest, jnp.where((index == layers)[:, None, None, None], read[None], dh)), None

    layers = jnp.asarray(site.layers)
    dh = jnp.zeros((len(site.layers), pairs, rows, config.hidden), dtype)
    xs = (jnp.arange(config.layers), params.blocks, taps.tree["blocks"])
    (_, (x, dx), dh), _ = jax.lax.scan(body, (start(head) if batch.shared else None, start(tail), dh), xs)

    def behaviour(x: Array, tree: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        logits, inputs = unembed(config, params, x, TapSource(tree))
        return log_probability(logits, targets), inputs

    at = answer - batch.shared
    zeros = head_zeros(config, *answer.shape, dtype=dtype)
    _, linear, inputs = jax.linearize(behaviour, at_tokens(x, at), zeros, has_aux=True)
    injected = {
        "final_norm": inject(taps.tree["final_norm"], inputs["final_unit"]),
        "unembed": inject(taps.tree["unembed"], inputs["final_in"]),
    }
    dy = jax.vmap(linear)(jax.vmap(at_tokens, (0, None))(dx, at), injected)
    dh = dh[:, :, :: len(targets.rows)]
    return Reading(dh[0], dy, dh[1:])


def _advance(
    config: ModelConfig,
    params: Block,
    steps: dict[str, Any],
    site: Site,
    carry: tuple[Array, Array],
    past: Past | None,
    dpast: Past | None,
    at: Array,
) -> tuple[tuple[Array, Array], tuple[Past, Past], Array]:
    """One block, linearised once → (x, dx) after it, (keys and values, their tangents) of row 0, tangent of the read stream."""

    def run(x: Array, taps: dict[str, Array], past: Past | None) -> tuple[tuple[Array, Past, Array], dict[str, Array]]:
        streams, own, inputs = block(config, params, x, taps, past=past)
        assert own is not None
        return (streams["resid_post"], own, at_token(streams[site.stream], at)), inputs

    x, dx = carry
    zeros = block_zeros(config, *x.shape[:2], dtype=x.dtype)
    (y, kv, _), linear, inputs = jax.linearize(run, x, zeros, past, has_aux=True)
    injected = {name: inject(step, inputs[_SOURCE[name]]) for name, step in steps.items()}
    dy, dkv, read = jax.vmap(linear)(dx, injected, dpast)
    return (y, dy), (kv, dkv), read
