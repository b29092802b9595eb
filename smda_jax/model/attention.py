"""Rotated, causal, grouped-query attention, over rows that are padded or packed into lanes."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from smda_jax.kernels.packing import Packing
from smda_jax.model.config import ModelConfig
from smda_jax.runtime.precision import wide


class Past(NamedTuple):
    """Rotated keys and values of tokens that come before every row and are the same for all."""

    k: Float[Array, "past kv_head head_dim"]
    v: Float[Array, "past kv_head head_dim"]


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
    config: ModelConfig, kind: Int[Array, ""], start: int, x: Float[Array, "row token head dim"]
) -> Float[Array, "row token head dim"]:
    """Half-split rotation (the layout of Hugging Face checkpoints) of the first `dims` dimensions.

    Angles of positions start, start + 1, … are computed in float64 on the host.
    """
    ropes = [layer_kind.rope for layer_kind in config.kinds]
    dims = next((rope.dims for rope in ropes if rope), 0)
    if not dims:
        return x
    tokens, half = x.shape[1], dims // 2
    still = np.ones((tokens, half)), np.zeros((tokens, half))  # a layer without rotation
    tables = [rope.tables(start, tokens) if rope else still for rope in ropes]
    cos = of_kind([c for c, _ in tables], kind, x.dtype)[None, :, None]
    sin = of_kind([s for _, s in tables], kind, x.dtype)[None, :, None]
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
    # Heads that share keys in one product, and heads before tokens: fewer and larger products, and
    # no transposes in tangents.
    group = shape.heads // shape.kv_heads
    spec = "row token (kv_head group) dim -> row kv_head (group token) dim"
    q = rearrange(q, spec, kv_head=shape.kv_heads)
    k, v = (rearrange(x, "row token kv_head dim -> row kv_head token dim") for x in (k, v))
    distance = np.arange(before, before + tokens)[:, None] - np.arange(before + tokens)
    windows = [layer_kind.window or distance.size + 1 for layer_kind in config.kinds]
    masks = [np.tile((distance >= 0) & (distance < w), (group, 1)) for w in windows]
    seen = of_kind(masks, kind, bool)
    scores = jnp.einsum("rkqh,rksh->rkqs", q, k).astype(wide(q.dtype)) * shape.scale
    if shape.cap is not None:
        scores = shape.cap * jnp.tanh(scores / shape.cap)
    p = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1).astype(q.dtype)
    mixed = jnp.einsum("rkqs,rksh->rkqh", p, v)
    spec = "row kv_head (group token) dim -> row token (kv_head group dim)"
    return rearrange(mixed, spec, token=tokens)


def mix(
    config: ModelConfig,
    kind: Int[Array, ""],
    heads: Heads,
    past: Past | None,
    packing: Packing | None,
) -> tuple[Float[Array, "lane token mixed"], Past | None]:
    """Rotates and attends; without a packing a lane is a row.

    Returns:
        the mixed values, and keys and values of row 0 (None where rows are packed).
    """
    start = 0 if past is None else past.k.shape[0]
    turn = partial(rotate, config, kind, start)
    if packing is None:
        turned = Heads(turn(heads.q), turn(heads.k), heads.v)
        return attention(config, kind, turned, past), Past(turned.k[0], turned.v[0])

    def of_rows(q: Array, k: Array, v: Array) -> Array:
        return attention(config, kind, Heads(turn(q), turn(k), v), past)

    return packing.attend(of_rows, *heads), None
