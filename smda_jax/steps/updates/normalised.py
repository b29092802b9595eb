"""`normalised`: a step of the same length on every pair."""

from typing import ClassVar

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
        return Update.rate(self, norm) / norm


def prepare(on: Preparation) -> Normalised:
    """`-η g / ‖g‖`."""
    return Normalised(on.learning_rate)
