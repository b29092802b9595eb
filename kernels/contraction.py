"""Contraction of pulled-back readouts with the steps of pairs, over one linear operation.

A readout r of prompt n has gradient g[r,n,t] at the operation's output at token t, where the operation reads x[n,t]. A pair's
step w changes that output by x[n,t] w, so the readout by `Σ_t x[n,t] w · g[r,n,t]`. Either the change of the output is formed
first ("injected", shared by the readouts), or the readout's gradient with respect to the matrix ("materialised", shared by
the pairs).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def materialised(
    x: Float[Array, "prompt token in"], g: Float[Array, "readout prompt token out"], w: Float[Array, "pair in out"]
) -> Float[Array, "pair prompt readout"]:
    """`⟨w[i], Σ_t x[n,t] ⊗ g[r,n,t]⟩`, no more readout gradients at a time than there are steps."""
    # Pairs last, and x repeated: the layouts that XLA's CPU products are fastest in; elsewhere they are as good as any.
    readouts, pairs, flat = g.shape[0], w.shape[0], w.reshape(w.shape[0], -1).T

    def some(one: tuple[Array, Array]) -> Array:
        x, g = one
        m = jnp.einsum("rti,rto->rio", jnp.broadcast_to(x[None], (readouts, *x.shape)), g)
        return m.reshape(readouts, -1) @ flat

    out = jax.lax.map(some, (x, jnp.swapaxes(g, 0, 1)), batch_size=max(1, pairs // readouts))
    return jnp.moveaxis(out, 2, 0)


def injected(
    x: Shaped[Array, "prompt token *input"],
    g: Float[Array, "readout prompt token out"],
    inject: Callable[[Array], Float[Array, "pair prompt token out"]],
    at_a_time: int,
) -> Float[Array, "pair prompt readout"]:
    """`Σ_t inject(x)[i,n,t] · g[r,n,t]`, `at_a_time` prompts at a time."""

    def one(x: Array, g: Array) -> Array:
        return jnp.einsum("pto,rto->pr", inject(x[None])[:, 0], g)

    out = jax.lax.map(lambda both: one(*both), (x, jnp.swapaxes(g, 0, 1)), batch_size=at_a_time)
    return jnp.moveaxis(out, 1, 0)


def materialising_is_cheaper(pairs: int, tokens: int, prompts: int, readouts: int, steps: int, size: tuple[int, int]) -> bool:
    """By multiplications per pair and prompt; `steps` is how many tokens a factored step has, 0 if it is a matrix already."""
    both, total = size[0] * size[1], size[0] + size[1]
    direct = tokens * (min(steps * total, both) if steps else both) + readouts * tokens * size[1]
    matrix = readouts * both * (1 + tokens / pairs) + steps * both / prompts
    return matrix < direct
