"""Rotated, causal, grouped-query attention, over rows that are padded or packed into lanes."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from smda_jax.kernels.packing import Packing
from smda_jax.model.config import ModelConfig
from smda_jax.runtime.precision import wide


class Past(NamedTuple):
    """Rotated keys and values of tokens that come before every row and are the same for all."""

    k: Float[Array, "past kv_head head_dim"]
    v: Float[Array, "past kv_head head_dim"]


class Cache(NamedTuple):
    """Rotated keys and values of every row's own tokens so far, with room for more.

    Attributes:
        k: what lies behind a row's tokens is overwritten by its next ones.
        v: likewise.
        length: tokens of each row.
    """

    k: Float[Array, "row room kv_head head_dim"]
    v: Float[Array, "row room kv_head head_dim"]
    length: Int[Array, " row"]


class Heads(NamedTuple):
    """Queries, keys and values."""

    q: Float[Array, "lane token head head_dim"]
    k: Float[Array, "lane token kv_head head_dim"]
    v: Float[Array, "lane token kv_head head_dim"]


def of_kind(values: list[np.ndarray], kind: Int[Array, ""], dtype: Any) -> Array:
    """The value of a layer's kind; where all kinds have the same, it is a constant."""
    if all(v is values[0] or np.array_equal(v, values[0]) for v in values):
        return jnp.asarray(values[0], dtype)
    return jnp.asarray(np.stack(values), dtype)[kind]


def rotate(
    config: ModelConfig,
    kind: Int[Array, ""],
    start: int,
    x: Float[Array, "row token head dim"],
    positions: Int[Array, "row token"] | None = None,
    room: int = 0,
) -> Float[Array, "row token head dim"]:
    """Half-split rotation (the layout of Hugging Face checkpoints) of the first `dims` dimensions.

    Angles of positions start, start + 1, … are computed in float64 on the host; where rows stand at
    `positions` of their own, those of all of a `room`.
    """
    ropes = [layer_kind.rope for layer_kind in config.kinds]
    dims = next((rope.dims for rope in ropes if rope), 0)
    if not dims:
        return x
    tokens, half = room or x.shape[1], dims // 2
    still = np.ones((tokens, half)), np.zeros((tokens, half))  # a layer without rotation
    tables = [rope.tables(start, tokens) if rope else still for rope in ropes]
    cos = of_kind([c for c, _ in tables], kind, x.dtype)
    sin = of_kind([s for _, s in tables], kind, x.dtype)
    if positions is not None:
        cos, sin = cos[positions][:, :, None], sin[positions][:, :, None]
    else:
        cos, sin = cos[None, :, None], sin[None, :, None]
    # Split rather than sliced: its transpose is one concatenation, not a sum of padded copies.
    a, b, *rest = jnp.split(x, [half, dims] if dims < x.shape[-1] else [half], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, *rest], axis=-1)


def attention(
    config: ModelConfig, kind: Int[Array, ""], heads: Heads, past: Past | None
) -> Float[Array, "row token mixed"]:
    """Causal grouped-query attention in plain `jnp`.

    Fused attention is a custom_vjp and refuses forward mode. Rows are padded on the right, so the
    causal mask alone keeps padding out of every real token.
    """
    (q, k, v), shape = heads, config.attention
    tokens, before = q.shape[1], 0 if past is None else past.k.shape[0]
    if past is not None:
        # A copy for each row is less to move than scores joined, and probabilities cut.
        k, v = (
            jnp.concatenate([jnp.broadcast_to(old[None], (len(own), *old.shape)), own], axis=1)
            for old, own in ((past.k, k), (past.v, v))
        )
    distance = np.arange(before, before + tokens)[:, None] - np.arange(before + tokens)
    windows = [layer_kind.window or distance.size + 1 for layer_kind in config.kinds]
    group = shape.heads // shape.kv_heads
    masks = [np.tile((distance >= 0) & (distance < w), (group, 1)) for w in windows]
    return attend(config, Heads(q, k, v), of_kind(masks, kind, bool)[None, None])


def attend(
    config: ModelConfig, heads: Heads, seen: Bool[Array, "row_or_one one group_token key"]
) -> Float[Array, "row token mixed"]:
    """Softmax attention of tokens to the keys that each of them sees."""
    (q, k, v), shape, tokens = heads, config.attention, heads.q.shape[1]
    # Heads that share keys in one product, and heads before tokens: fewer and larger products, and
    # no transposes in tangents.
    spec = "row token (kv_head group) dim -> row kv_head (group token) dim"
    q = rearrange(q, spec, kv_head=shape.kv_heads)
    k, v = (rearrange(x, "row token kv_head dim -> row kv_head token dim") for x in (k, v))
    scores = jnp.einsum("rkqh,rksh->rkqs", q, k).astype(wide(q.dtype)) * shape.scale
    if shape.cap is not None:
        scores = shape.cap * jnp.tanh(scores / shape.cap)
    p = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(q.dtype)
    mixed = jnp.einsum("rkqs,rksh->rkqh", p, v)
    spec = "row kv_head (group token) dim -> row token (kv_head group dim)"
    return rearrange(mixed, spec, token=tokens)


def continue_rows(
    config: ModelConfig, kind: Int[Array, ""], heads: Heads, cache: Cache
) -> tuple[Float[Array, "row token mixed"], Cache]:
    """Further tokens of every row attend to those before them, and join the cache.

    The cache's `length` stays: who gives the tokens knows how many of them are real.
    """
    tokens, room, shape = heads.q.shape[1], cache.k.shape[1], config.attention
    at = cache.length[:, None] + jnp.arange(tokens, dtype=cache.length.dtype)[None]
    turn = partial(rotate, config, kind, 0, positions=at, room=room)
    rows = jnp.arange(len(at))[:, None]
    k, v = cache.k.at[rows, at].set(turn(heads.k)), cache.v.at[rows, at].set(heads.v)
    distance = at[:, :, None] - jnp.arange(room, dtype=at.dtype)[None, None]
    window = of_kind([np.asarray(one.window or room + 1) for one in config.kinds], kind, at.dtype)
    seen = (distance >= 0) & (distance < window)
    group = shape.heads // shape.kv_heads
    mask = jnp.tile(seen, (1, group, 1))[:, None]
    return attend(config, Heads(turn(heads.q), k, v), mask), Cache(k, v, cache.length)


def mix(
    config: ModelConfig,
    kind: Int[Array, ""],
    heads: Heads,
    past: Past | Cache | None,
    packing: Packing | None,
) -> tuple[Float[Array, "lane token mixed"], Past | Cache | None]:
    """Rotates and attends; without a packing a lane is a row.

    Returns:
        the mixed values, and keys and values: of row 0, or those of all rows that have a cache
        (None where rows are packed).
    """
    if isinstance(past, Cache):
        return continue_rows(config, kind, heads, past)
    start = 0 if past is None else past.k.shape[0]
    turn = partial(rotate, config, kind, start)
    if packing is None:
        turned = Heads(turn(heads.q), turn(heads.k), heads.v)
        return attention(config, kind, turned, past), Past(turned.k[0], turned.v[0])

    def of_rows(q: Array, k: Array, v: Array) -> Array:
        return attention(config, kind, Heads(turn(q), turn(k), v), past)

    return packing.attend(of_rows, *heads), None
