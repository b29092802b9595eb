"""Contraction of pulled-back readouts with the steps of pairs, over one linear operation.

A readout r of prompt n has gradient g[r,n,t] at the operation's output at token t, where the
operation reads x[n,t]. A pair's step w changes that output by x[n,t] w, so the readout by `Σ_t
x[n,t] w · g[r,n,t]`. Either the change of the output is formed first ("injected", shared by the
readouts), or the readout's gradient with respect to the matrix ("materialised", shared by the
pairs).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def contract(
    x: Float[Array, "prompt token in"],
    g: Float[Array, "readout prompt token out"],
    w: Float[Array, "in out pair"],
) -> Float[Array, "pair prompt readout"]:
    """`Σ_t x[n,t] w[i] · g[r,n,t]`, by whichever way takes fewer multiplications; summed in at
    least float32."""
    (readouts, _, tokens, out), inner, pairs = g.shape, x.shape[-1], w.shape[-1]
    matrix = readouts * inner * out * (pairs + tokens)
    direct = pairs * tokens * out * (inner + readouts)
    return materialised(x, g, w) if matrix < direct else injected(x, g, w)


def materialised(
    x: Float[Array, "prompt token in"],
    g: Float[Array, "readout prompt token out"],
    w: Float[Array, "in out pair"],
) -> Float[Array, "pair prompt readout"]:
    """`⟨Σ_t x[n,t] ⊗ g[r,n,t], w[i]⟩`, no more readout gradients at a time than there are steps."""
    readouts, pairs = g.shape[0], w.shape[-1]
    flat = w.reshape(-1, pairs)

    def some(one: tuple[Array, Array]) -> Array:
        # x repeated, pairs last: the layouts that XLA's CPU products are fastest in; elsewhere they
        # are as good as any.
        x, g = one
        m = jnp.einsum("rti,rto->rio", jnp.broadcast_to(x[None], (readouts, *x.shape)), g)
        return jnp.matmul(
            m.reshape(readouts, -1),
            flat,
            preferred_element_type=np.promote_types(x.dtype, np.float32),
        )

    out = jax.lax.map(some, (x, jnp.swapaxes(g, 0, 1)), batch_size=max(1, pairs // readouts))
    return jnp.moveaxis(out, 2, 0)


def injected(
    x: Float[Array, "prompt token in"],
    g: Float[Array, "readout prompt token out"],
    w: Float[Array, "in out pair"],
) -> Float[Array, "pair prompt readout"]:
    """`Σ_t (x[n,t] w[i]) · g[r,n,t]`, a few prompts at a time: each group reads all of w."""

    def one(both: tuple[Array, Array]) -> Array:
        x, g = both
        wide = np.promote_types(x.dtype, np.float32)
        return jnp.einsum(
            "top,rto->pr", jnp.einsum("ti,iop->top", x, w), g, preferred_element_type=wide
        )

    out = jax.lax.map(one, (x, jnp.swapaxes(g, 0, 1)), batch_size=max(1, 64 // x.shape[1]))
    return jnp.swapaxes(out, 0, 1)
