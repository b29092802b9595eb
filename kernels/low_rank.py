"""Product with a low-rank matrix, `x aᵀ d`, which the injection of a step in factored form is made
of."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def low_rank_product(
    x: Float[Array, "*rows in"], a: Float[Array, "token in"], d: Float[Array, "token out"]
) -> Float[Array, "*rows out"]:
    """`(x aᵀ) d`: two thin products; the in x out matrix `aᵀ d` is never formed."""
    return jnp.einsum("...i,si->...s", x, a) @ d
