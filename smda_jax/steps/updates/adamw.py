"""`adamw`: what a whole run of Adam makes of a pair, to first order and in expectation.

Over a run with batches of B pairs, coordinate by coordinate, Adam's step is about `μ / (√v + ε)`:
μ is the mean of the pairs' gradients, σ² their variance, and `v = μ² + σ²/B` the second moment of a
batch's gradient. The pairs' share in it is its derivative with respect to μ, v included:

    P = 1 / (√v + ε) − μ² / (√v (√v + ε)²)        (σ²/B · v^(−3/2) without ε)

So a coordinate where every batch pulls the same way (μ² ≫ σ²/B) moves by its sign, whoever is left
out, and counts for little; one that the batches disagree on counts by `1 / √v`. Learning rate and
schedule are in η; a clipped norm cancels in Adam's ratio but for differences between steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smda_jax.data.batch.batches import PairBatch
from smda_jax.model.params import Params
from smda_jax.runtime.devices import Replicated, Rows, Summed
from smda_jax.runtime.precision import numerics
from smda_jax.runtime.programs import program
from smda_jax.steps.gradient import gradient, power_sums
from smda_jax.steps.updates import Preparation
from smda_jax.steps.updates.diagonal import Diagonal
from smda_jax.steps.updates.means import mean_over

EPS = 1e-8  # Adam's


class Moments(NamedTuple):
    """Of the pairs' gradients, entry by entry.

    Attributes:
        mean: of them.
        square: mean of their squares.
    """

    mean: Params
    square: Params


def prepare(on: Preparation) -> Diagonal:
    """`-η P ∘ g`, with moments of the pairs, or of the data told."""
    tokens = on.tokens if on.curvature.tokens is None else on.curvature.tokens
    model = on.model

    def part(batch: PairBatch, rows: np.ndarray, weight: Array) -> Moments:
        return _moments.run(model.params, batch, weight)

    with numerics(model.dtype):
        moments = mean_over(model, tokens, part)
        factor = derivative_of_step(moments, min(on.curvature.batch, len(tokens)), model.dtype)
    return Diagonal(on.learning_rate, factor)


def derivative_of_step(moments: Moments, batch: int, dtype: Any) -> Params:
    """P of the module, shaped like the parameters."""

    def one(mean: Array, square: Array) -> Array:
        mean = mean.astype(square.dtype)
        v = mean**2 + jnp.maximum(square - mean**2, 0) / batch
        root = jnp.sqrt(v)
        # Where no pair has a gradient, μ² / √v is 0 / 0.
        ratio = jnp.where(v > 0, mean**2 / jnp.where(v > 0, root, jnp.ones_like(root)), 0.0)
        return (1 / (root + EPS) - ratio / (root + EPS) ** 2).astype(dtype)

    return jax.tree.map(one, *moments)


@program(Replicated(), Rows(), Rows(), result=Summed())
def _moments(params: Params, batch: PairBatch, weight: Float[Array, " pair"]) -> Moments:
    return Moments(*power_sums(gradient(params, batch)[1], weight, params))
