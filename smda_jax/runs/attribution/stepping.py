"""How a run steps on its pairs."""

from smda_jax.reading.network import Model
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs.load import Inputs
from smda_jax.steps.dataset import Stepping
from smda_jax.steps.updates import offer
from smda_jax.steps.updates.contract import Update


def stepping_of(c: Attribute, inputs: Inputs) -> Stepping:
    """The model and the update of a run, of the parameters that it moves."""
    model: Model = inputs.question.model
    update: Update = offer(c.update).prepare(model, inputs.pair_tokens, c.learning_rate)
    return Stepping(model, update.replace(moved=inputs.moved))  # type: ignore[attr-defined]
