"""RMS norms, and their scales as they lie along what is normed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smda_jax.model.config import ModelConfig
from smda_jax.model.operations import Scale
from smda_jax.runtime.precision import wide


def along_rows(vector: Float[Array, " out"], x: Float[Array, "... out"]) -> Array:
    """A vector with as many axes as x, to be added to or multiplied with its rows."""
    return jnp.expand_dims(vector, range(x.ndim - 1))


def tile_scale(op: Scale, w: Float[Array, "... width"]) -> Float[Array, "... copies_width"]:
    """A scale as it lies along the operation's input: once for each head it acts on."""
    return w if op.copies == 1 else jnp.tile(w, (*[1] * (w.ndim - 1), op.copies))


def fold_scale(op: Scale, x: Float[Array, "... copies_width"]) -> Float[Array, "... width"]:
    """The transpose of `tile_scale`: what lies along the input, summed over the heads."""
    if op.copies == 1:
        return x
    return x.reshape(*x.shape[:-1], op.copies, op.width).sum(axis=-2)


def normalise(
    config: ModelConfig, op: Scale, w: Float[Array, " width"], x: Float[Array, "... copies_width"]
) -> tuple[Float[Array, "... copies_width"], Float[Array, "... copies_width"]]:
    """RMS norm in at least float32 → (what the scale reads, what it gives)."""
    x_wide = x.astype(wide(x.dtype))
    split = x_wide.reshape(*x.shape[:-1], op.copies, op.width) if op.copies > 1 else x_wide
    mean = jnp.mean(split**2, axis=-1, keepdims=True)
    unit_wide = (split * jax.lax.rsqrt(mean + config.norm_eps)).reshape(x.shape)
    unit = unit_wide.astype(x.dtype)
    if op.wide:
        factor = along_rows(tile_scale(op, op.offset + w.astype(wide(w.dtype))), x)
        return unit, (unit_wide * factor).astype(x.dtype)
    return unit, unit * along_rows(tile_scale(op, w + op.offset if op.offset else w), x)
