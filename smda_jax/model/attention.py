"""Rotated, causal, grouped-query attention, over rows that are padded or packed into lanes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from smda_jax.model.config import ModelConfig
from smda_jax.model.precision import wide


class Past(NamedTuple):
    """Rotated keys and values of the tokens that come before every row of a batch and are the same for all of them."""

    k: Float[Array, "past kv_head head_dim"]
    v: Float[Array, "past kv_head head_dim"]


class Packing(NamedTuple):
    """Rows of different lengths one behind the other in *lanes*: every operation but attention sees no padding.

    Attributes:
        unpack: for every token of a row, where it stands in its lane; groups of rows of like length, each padded to its own
            width. What pads a row is a token of its own, which causal attention keeps out of all others.
        pack: for every token of a lane, where it stands among the lane's rows as unpacked, group after group.
    """

    unpack: tuple[Int[Array | np.ndarray, "lane row token"], ...]
    pack: Int[Array | np.ndarray, "lane token"]


def rotary(config: ModelConfig, start: int, tokens: int, dtype: Any) -> tuple[Array, Array]:
    """Cosine and sine tables `[token, 1, half_head]` of positions start, start+1, ...; angles in float64 on the host."""
    angle = np.arange(start, start + tokens)[:, None] * config.rope.frequencies(config.head_dim)
    return jnp.asarray(np.cos(angle)[:, None], dtype), jnp.asarray(np.sin(angle)[:, None], dtype)


def rotate(x: Float[Array, "row token head half2"], cos: Array, sin: Array) -> Float[Array, "row token head half2"]:
    """Half-split rotation (the layout of Hugging Face checkpoints)."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos[None], sin[None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(
    config: ModelConfig,
    q: Float[Array, "row token head head_dim"],
    k: Float[Array, "row token kv_head head_dim"],
    v: Float[Array, "row token kv_head head_dim"],
    past: Past | None,
) -> Float[Array, "row token mixed"]:
    """Causal grouped-query attention in plain `jnp`: fused attention is a custom_vjp and refuses forward mode.

    Rows are padded on the right, so the causal mask alone keeps padding out of every real token.
    """
    tokens, before = q.shape[1], 0 if past is None else past.k.shape[0]
    if past is not None:
        # A copy for each row is less to move than scores joined, and probabilities cut, at the same place.
        k, v = (
            jnp.concatenate([jnp.broadcast_to(old[None], (len(own), *old.shape)), own], axis=1)
            for old, own in ((past.k, k), (past.v, v))
        )
    # Heads that share keys in one product, and heads before tokens: fewer and larger products, and in tangents no transposes.
    q = rearrange(q, "row token (kv_head group) head_dim -> row kv_head (group token) head_dim", kv_head=config.kv_heads)
    k, v = (rearrange(x, "row token kv_head head_dim -> row kv_head token head_dim") for x in (k, v))
    distance = np.arange(before, before + tokens)[:, None] - np.arange(before + tokens)
    seen = (distance >= 0) & (distance < (config.window or distance.size + 1))
    seen = jnp.asarray(np.tile(seen, (config.heads // config.kv_heads, 1)))
    scores = jnp.einsum("rkqh,rksh->rkqs", q, k).astype(wide(q.dtype)) * config.head_dim**-0.5
    p = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1).astype(q.dtype)
    mixed = jnp.einsum("rkqs,rksh->rkqh", p, v)
    return rearrange(mixed, "row kv_head (group token) head_dim -> row token (kv_head group head_dim)", token=tokens)


def mix(
    config: ModelConfig,
    q: Float[Array, "lane token head head_dim"],
    k: Float[Array, "lane token kv_head head_dim"],
    v: Float[Array, "lane token kv_head head_dim"],
    past: Past | None,
    packing: Packing | None,
) -> tuple[Float[Array, "lane token mixed"], Past | None]:
    """Rotates and attends → the mixed values, and keys and values of row 0 (of packed rows None).

    Without a packing a lane is a row.
    """
    start = 0 if past is None else past.k.shape[0]

    def rows(q: Array, k: Array, v: Array) -> tuple[Array, Past]:
        cos, sin = rotary(config, start, q.shape[1], q.dtype)
        k = rotate(k, cos, sin)
        return attention(config, rotate(q, cos, sin), k, v, past), Past(k[0], v[0])

    if packing is None:
        return rows(q, k, v)
    groups = []
    for index in packing.unpack:
        own = (_take(x, index) for x in (q, k, v))
        mixed, _ = rows(*(rearrange(x, "lane row token head head_dim -> (lane row) token head head_dim") for x in own))
        groups.append(mixed.reshape(len(index), -1, mixed.shape[-1]))
    return _take(jnp.concatenate(groups, axis=1), packing.pack), None


def _take(x: Float[Array, "lane from *rest"], index: Int[Array | np.ndarray, "lane *to"]) -> Float[Array, "lane *to_and_rest"]:
    """Tokens of each lane by their places, which are in bounds."""
    return jax.vmap(lambda x, index: x.at[index].get(mode="promise_in_bounds"))(x, jnp.asarray(index))
