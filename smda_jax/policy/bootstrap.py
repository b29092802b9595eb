"""How sure a figure is: the policy and every pair's shift of it, refitted on resamples of the
prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from smda_jax.policy.ridge import gram_factor, in_float64, solve


def resamples(prompts: int, count: int, seed: int) -> Float64[np.ndarray, "resample prompt"]:
    """How often each resample of `prompts` rows, drawn with replacement, holds every prompt."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, prompts, (count, prompts)) + prompts * np.arange(count)[:, None]
    return (
        np.bincount(drawn.ravel(), minlength=count * prompts)
        .reshape(count, prompts)
        .astype(np.float64)
    )


LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Refits:
    """A policy refitted on every resample, and what a shift of it needs.

    Attributes:
        weights: of the prompts in each resample.
        W: the policy.
        inverse: (XᵀDX + αI)⁻¹.
        residual: D (Y − XW).
    """

    weights: Float64[np.ndarray | Array, "resample prompt"]
    W: Float64[np.ndarray | Array, "resample feature"]
    inverse: Float64[np.ndarray | Array, "resample feature feature2"]
    residual: Float64[np.ndarray | Array, "resample prompt"]


@in_float64
@jax.jit
def _refit(X: Any, Y: Any, alpha: Any, weights: Any) -> tuple[Array, Array, Array]:
    def one(w: Array) -> tuple[Array, Array, Array]:
        inverse = solve(
            gram_factor(X * jnp.sqrt(w)[:, None], alpha), jnp.eye(X.shape[1], dtype=X.dtype)
        )
        W = inverse @ (X.T @ (w * Y))
        return W, inverse, w * (Y - X @ W)

    return jax.lax.map(one, weights, batch_size=8)


def refit(
    X: Float[np.ndarray, "prompt feature"],
    Y: Float[np.ndarray, " prompt"],
    alpha: float,
    weights: Float64[np.ndarray, "resample prompt"],
) -> Refits:
    """The policy of every resample."""
    return Refits(weights, *_refit(X, Y, float(alpha), weights))


@jax.jit
def _shift(X: Array, fixed: tuple[Array, ...], delta_x: Array, delta_y: Array) -> Array:
    # U⁻¹(ΔXᵀ Dr + XᵀD (ΔY − ΔX W)), all resamples at once: three products.
    weights, W, inverse, residual = fixed
    direct = residual @ delta_x
    moved = weights * (delta_y[None] - W @ delta_x.T)
    return jnp.einsum("rkl,rl->rk", inverse, direct + moved @ X)


def shifts(
    X: Float[np.ndarray, "prompt feature"],
    refits: Refits,
    delta_x: Float[np.ndarray, "pair prompt feature"],
    delta_y: Float[np.ndarray, "pair prompt"],
) -> Iterator[Float64[np.ndarray, "resample feature"]]:
    """ΔW of every resample, pair by pair: resamples and pairs together would not fit into
    memory."""
    held = (X, (refits.weights, refits.W, refits.inverse, refits.residual))
    with jax.enable_x64(True):
        fixed = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), held)
    for dX, dY in zip(delta_x, delta_y, strict=True):
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            out = np.asarray(
                _shift(*fixed, jnp.asarray(dX, jnp.float64), jnp.asarray(dY, jnp.float64))
            )
        yield out


@dataclass(frozen=True)
class Interval:
    """A percentile interval, and in how many resamples the figure has the sign that it has in all
    prompts."""

    low: Float64[np.ndarray, "*figure"]
    high: Float64[np.ndarray, "*figure"]
    sign_stability: Float64[np.ndarray, "*figure"]


def interval(
    draws: Float[np.ndarray, "resample *figure"],
    value: Float[np.ndarray, "*figure"],
    level: float = LEVEL,
) -> Interval:
    """The interval of a figure from its resamples; `value` is the figure itself."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return Interval(low, high, (np.sign(draws) == np.sign(value)[None]).mean(axis=0))
