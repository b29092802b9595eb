"""What is read from a prompt: the residual stream at its end of turn, and the log-probability of the behaviour."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from smda_jax.data.batches import PromptBatch
from smda_jax.data.targets import Targets
from smda_jax.model.attention import Packing
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import NO_TAPS, Params, Read, TapSource, embed, run_blocks, unembed
from smda_jax.model.precision import jit, wide


class Site(NamedTuple):
    """Where the SAE reads: a stream of `model.llama.SITES`, at a zero-based block; `also` lists further blocks to read."""

    stream: str
    layer: int
    also: tuple[int, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """The SAE's layer, then the others."""
        return (self.layer, *self.also)


class Reading(NamedTuple):
    """h and Y of prompts; `also` is the stream at the site's further layers."""

    h: Float[Array | np.ndarray, "*pair prompt hidden"]
    y: Float[Array | np.ndarray, "*pair prompt"]
    also: Float[Array | np.ndarray, "layer *pair prompt hidden"]


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
    """h and Y of a batch, in one pass over prompt and target histories together.

    The tokens that all prompts share are run once, as a batch of one; the rest attends to their keys and values. Packed prompts
    are read as padded ones are, a few to a lane.
    """
    tokens, eot, answer = (jnp.asarray(x) for x in (batch.tokens, batch.eot, batch.answer))
    shared, past, lanes = batch.shared, None, len(batch.tokens)
    packing = None if batch.pack is None else Packing(batch.unpack, batch.pack)
    if shared:
        past = run_blocks(config, params, embed(params, tokens[:1, :shared], taps), taps).past
    x = embed(params, tokens[:, shared:], taps)
    turns = Read(site.stream, site.layers, eot.reshape(lanes, -1) - shared)
    at = answer.reshape(lanes, -1) - shared
    hidden = run_blocks(config, params, x, taps, read=turns, past=past, packing=packing, ends=at)
    logits, _ = unembed(config, params, hidden.x, taps)
    assert hidden.read is not None
    h = rearrange(hidden.read, "layer lane row hidden -> layer (lane row) hidden")[:, :: len(targets.rows)]
    logits = logits.reshape(-1, targets.positions, logits.shape[-1])
    return Reading(h[0], log_probability(logits, targets), h[1:])


@partial(jit, static_argnames=("config", "targets", "site"))
def base(config: ModelConfig, params: Params, batch: PromptBatch, targets: Targets, site: Site) -> Reading:
    """`read` at the base weights."""
    return read(config, params, batch, targets, site)
