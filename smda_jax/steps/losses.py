"""The loss of every pair of a batch."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from smda_jax.data.batch.batches import PairBatch
from smda_jax.model.forward import (
    NO_TAPS,
    Context,
    TapSource,
    Wanted,
    embed,
    run_blocks,
    unembed,
)
from smda_jax.model.params import Params
from smda_jax.runtime.precision import wide


def scored_losses(
    params: Params, batch: PairBatch, taps: TapSource = NO_TAPS, keep: tuple[str, ...] = ()
) -> tuple[Float[Array, " pair"], dict[str, Array]]:
    """Loss of every pair, and inputs of operations.

    Returns:
        losses, and inputs of operations: those of the blocks in `keep`, and the head's.
    """
    sums, kept = scored_sums(params, batch, taps, keep)
    return batch.loss.value(sums), kept


def scored_sums(
    params: Params, batch: PairBatch, taps: TapSource = NO_TAPS, keep: tuple[str, ...] = ()
) -> tuple[Float[Array, "pair row"], dict[str, Array]]:
    """What losses are made of: weighted sums of the cross-entropies of every pair's rows."""
    weighted, kept = scored_tokens(params, batch, taps, keep)
    return jnp.sum(weighted, axis=-1).reshape(batch.pairs, batch.loss.rows), kept


def scored_tokens(
    params: Params, batch: PairBatch, taps: TapSource = NO_TAPS, keep: tuple[str, ...] = ()
) -> tuple[Float[Array, "lane row position"], dict[str, Array]]:
    """What the sums are made of: every scored token's cross-entropy, weighted."""
    logits, kept = _scored(params, batch, taps, keep)
    logits, target = logits.astype(wide(logits.dtype)), jnp.asarray(batch.target)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    weight = jnp.asarray(batch.weight, losses.dtype)
    # Chosen before they are weighed: a loss that is not finite, times zero, would spoil the others
    # of its lane.
    own = jnp.where(weight > 0, losses[:, None], jnp.zeros_like(weight))
    return own * weight, kept


def scored_logits(params: Params, batch: PairBatch) -> Float[Array, "lane position vocab"]:
    """What the model expects at the scored positions."""
    return _scored(params, batch, NO_TAPS, ())[0]


def _scored(
    params: Params, batch: PairBatch, taps: TapSource, keep: tuple[str, ...]
) -> tuple[Float[Array, "lane position vocab"], dict[str, Array]]:
    """Logits at the scored positions, and inputs of operations.

    The tokens that all pairs share are run once, as a batch of one; what is kept is of the rest.
    """
    tokens, shared, past = jnp.asarray(batch.tokens), batch.shared, None
    if shared:
        past = run_blocks(params, embed(params, tokens[:1, :shared], taps), taps).past
    at = jnp.maximum(jnp.asarray(batch.at) - shared, 0)  # padding stands at 0
    x = embed(params, tokens[:, shared:], taps)
    context = Context(past, batch.packing, at)
    hidden = run_blocks(params, x, taps, Wanted(keep=keep), context)
    logits, head = unembed(params, hidden.x, taps)
    return logits, hidden.kept | head
