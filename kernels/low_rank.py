"""Product with a low-rank matrix, `x aᵀ d`, which every injection of a step is made of."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def low_rank_product(
    x: Float[Array, "*rows in"], a: Float[Array, "token in"], d: Float[Array, "token out"]
) -> Float[Array, "*rows out"]:
    """`x @ (a.T @ d)`, in the order that takes fewer multiplications.

    With n rows and s tokens, `(x aᵀ) d` costs n·s·(in + out) and `x (aᵀ d)` costs (s + n)·in·out: factored at the size of real
    models, merged where the model is smaller than the pair is long.
    """
    rows, (tokens, width_in), width_out = math.prod(x.shape[:-1]), a.shape, d.shape[-1]
    factored = rows * tokens * (width_in + width_out)
    merged = (tokens + rows) * width_in * width_out
    if factored <= merged:
        return jnp.einsum("...i,si->...s", x, a) @ d
    return x @ jnp.einsum("si,so->io", a, d)
