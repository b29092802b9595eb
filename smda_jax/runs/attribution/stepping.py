"""How a run steps on its pairs."""

from smda_jax.reading.network import Model
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs.load import Inputs
from smda_jax.steps.dataset import Stepping
from smda_jax.steps.updates import Curvature, Preparation, offer
from smda_jax.steps.updates.contract import Update


def stepping_of(c: Attribute, inputs: Inputs) -> Stepping:
    """The model and the update of a run, of the parameters that it moves."""
    step = c.step
    model: Model = inputs.base
    curvature = Curvature(inputs.curvature_tokens, c.damping, c.fisher, c.seed, step.batch)
    on = Preparation(model, inputs.pair_tokens, step.learning_rate, curvature, inputs.moved)
    update: Update = offer(step.update).prepare(on)
    return Stepping(model, update.replace(moved=inputs.moved))  # type: ignore[attr-defined]
