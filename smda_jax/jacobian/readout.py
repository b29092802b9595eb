"""What is read from a prompt: the residual stream at its end of turn, and the log-probability of the behaviour."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smda_jax.data.batches import PromptBatch
from smda_jax.data.targets import Targets
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import NO_TAPS, Params, TapSource, at_tokens, embed, run_blocks, unembed, wide


class Site(NamedTuple):
    """Where the SAE reads: a stream of `model.llama.SITES`, at a zero-based block."""

    stream: str
    layer: int


class Reading(NamedTuple):
    """h and Y of prompts."""

    h: Float[Array | np.ndarray, "*pair prompt hidden"]
    y: Float[Array | np.ndarray, "*pair prompt"]


def log_probability(logits: Float[Array, "row position vocab"], targets: Targets) -> Float[Array, " prompt"]:
    """`Y[n] = logsumexp_q Σ_t log p(q_t | prompt, q_<t)` over the target sequences q."""
    ids, real = targets.padded()
    logp = jax.nn.log_softmax(logits.astype(wide(logits.dtype)), axis=-1)
    logp = logp.reshape(-1, len(targets.rows), *logp.shape[1:])
    per_token = logp[:, jnp.asarray(targets.row)[:, None], jnp.arange(targets.positions)[None], jnp.asarray(ids)]
    per_token = jnp.where(jnp.asarray(real)[None], per_token, jnp.zeros_like(per_token))
    return jax.nn.logsumexp(per_token.sum(axis=-1), axis=-1)


def read(
    config: ModelConfig, params: Params, batch: PromptBatch, targets: Targets, site: Site, taps: TapSource = NO_TAPS
) -> Reading:
    """h and Y of a batch, in one pass over prompt and target histories together."""
    x = embed(params, jnp.asarray(batch.tokens), taps)
    hidden = run_blocks(config, params, x, taps, read=(site.stream, site.layer, jnp.asarray(batch.eot)))
    logits, _ = unembed(config, params, at_tokens(hidden.x, jnp.asarray(batch.answer)), taps)
    assert hidden.read is not None
    return Reading(hidden.read[:: len(targets.rows)], log_probability(logits, targets))


@partial(jax.jit, static_argnames=("config", "targets", "site"))
def base(config: ModelConfig, params: Params, batch: PromptBatch, targets: Targets, site: Site) -> Reading:
    """`read` at the base weights."""
    return read(config, params, batch, targets, site)
