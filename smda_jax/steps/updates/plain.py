"""`sgd`: the plain step."""

from typing import Any

from smda_jax.steps.updates.contract import Update


def prepare(model: Any, tokens: Any, learning_rate: float) -> Update:
    """`-η g`."""
    return Update(learning_rate)
