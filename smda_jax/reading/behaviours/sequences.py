"""Log-probabilities of token sequences, of which behaviours are made."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smda_jax.data.targets import Targets
from smda_jax.runtime.precision import wide


def log_probabilities(
    targets: Targets, logits: Float[Array, "row position vocab"]
) -> Float[Array, "prompt sequence"]:
    """`Σ_t log p(q_t | prompt, q_<t)` of every sequence q, in nats.

    For a behaviour whose `histories` are `targets.rows` and whose `positions` are
    `targets.positions`.
    """
    ids, real = targets.padded()
    logp = jax.nn.log_softmax(logits.astype(wide(logits.dtype)), axis=-1)
    logp = logp.reshape(-1, len(targets.rows), *logp.shape[1:])
    rows = jnp.asarray(targets.row)[:, None]
    steps = jnp.arange(targets.positions)[None]
    per_token = logp[:, rows, steps, jnp.asarray(ids)]
    per_token = jnp.where(jnp.asarray(real)[None], per_token, jnp.zeros_like(per_token))
    return per_token.sum(axis=-1)
