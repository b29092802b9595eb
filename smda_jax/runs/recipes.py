"""Recipes of training, and the step that stands for each. Imports nothing heavy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smda_jax.errors import InputError

if TYPE_CHECKING:
    from smda_jax.data.losses import LossName, LossScope


class Step(NamedTuple):
    """The step that a run is of: options of attribute, once its recipe has said the rest."""

    update: str
    learning_rate: float
    batch: int
    loss: "LossName"
    beta: float
    loss_scope: "LossScope"
    max_length: int


DEFAULT, STEP = "adamw-2e-5x3", "sgd-step"
# The paper's own step, and what runs took before there were recipes.
ONE_STEP: dict[str, Any] = {
    "update": "sgd", "learning_rate": 1e-4, "batch": 16, "loss": "sft", "beta": 0.1,
    "loss_scope": "response", "max_length": 512,
}  # fmt: skip
# Of an optimiser of optax, the update that stands for a run of it.
STANDS_FOR = {"adamw": "adamw", "adam": "adamw", "nadam": "adamw", "nadamw": "adamw", "sgd": "sgd"}


def recipe_of(name: str) -> Any:
    """The training recipe of a name, or of a finetune.json; see `training.recipe.Recipe`.

    Raises:
        InputError: there is none.
    """
    from smda_jax.training.recipe import Recipe, recipe_named

    path = Path(name).expanduser()
    path = path / "finetune.json" if (path / "finetune.json").is_file() else path
    if not path.is_file():
        return recipe_named(name)
    try:
        found = Recipe(**json.loads(path.read_text(encoding="utf-8"))["recipe"])
        found.check()
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"is not the finetune.json of a finetune: {error!r}"
        raise InputError(path, what, "give OUT/finetune.json") from error


def step_of(recipe: str | None, update: str | None) -> dict[str, Any]:
    """What a recipe says of the options of attribute.

    Raises:
        InputError: there is no such recipe, or no first-order step stands for its optimiser.
    """
    name = recipe or (DEFAULT if update is None else STEP)
    if name == STEP:
        return ONE_STEP | {"recipe": STEP}
    found = recipe_of(name)
    stands = STANDS_FOR.get(found.optimiser)
    if stands is None and update is None:
        known = ", ".join(STANDS_FOR)
        what = f"no first-order step stands for a run of {found.optimiser}"
        raise InputError("--recipe", what, f"one of {known}, or say --update too")
    return {
        "recipe": name,
        "update": stands,
        "learning_rate": found.share,
        "batch": found.batch,
        "loss": found.loss,
        "beta": found.beta,
        "loss_scope": found.loss_scope,
        "max_length": found.max_length,
    }
