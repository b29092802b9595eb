"""`sgd`: the plain step."""

from smda_jax.steps.updates import Preparation
from smda_jax.steps.updates.contract import Update


def prepare(on: Preparation) -> Update:
    """`-η g`."""
    return Update(on.learning_rate)
