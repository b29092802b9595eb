"""`normalised`: a step of the same length on every pair."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from smda_jax.pytree import pytree
from smda_jax.steps.updates import Preparation
from smda_jax.steps.updates.contract import Update


@pytree
class Normalised(Update):
    """`-η g / ‖g‖`."""

    needs_norm: ClassVar[bool] = True

    def rate(self, norm: Float[Array, " pair"]) -> Float[Array, " pair"]:
        """See `Update`."""
        # A gradient of nothing makes no step.
        none = norm == 0
        return jnp.where(none, 0, Update.rate(self, norm) / jnp.where(none, 1, norm))


def prepare(on: Preparation) -> Normalised:
    """`-η g / ‖g‖`."""
    return Normalised(on.learning_rate)
