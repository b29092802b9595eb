"""Recipes of training, and the step that stands for each. Imports nothing heavy."""

import json
from dataclasses import replace
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
MANY = 16 * 10**4  # pairs, where it is not known yet how many there are
# Of an optimiser of optax, the update that stands for a run of it.
STANDS_FOR = {"adamw": "adamw", "adam": "adamw", "nadam": "adamw", "nadamw": "adamw", "sgd": "sgd"}


def recipe_of(name: str) -> Any:
    """The training recipe of a name, or of a finetune.json; see `training.recipe.Recipe`.

    Raises:
        InputError: there is none.
    """
    from smda_jax.training.recipe import Recipe, recipe_named

    if name == STEP:
        what = f"{STEP} is one step, and no training"
        raise InputError("--recipe", what, "OPTIMISER-RATExEPOCHS such as sgd-1e-3x1")
    path = Path(name).expanduser()
    path = path / "finetune.json" if (path / "finetune.json").is_file() else path
    if not path.is_file():
        return recipe_named(name)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "recipe" not in record:
            raise InputError(path, "records no recipe", "give the finetune.json of a finetune")
        found = Recipe(**record["recipe"])
        found.check()
        return found
    except (OSError, ValueError, TypeError) as error:
        what = f"is not the finetune.json of a finetune: {error}"
        raise InputError(path, what, "give OUT/finetune.json") from error


def step_of(
    recipe: str | None, update: str | None, batch: int | None = None, pairs: int = MANY
) -> dict[str, Any]:
    """What a recipe says of the options of attribute.

    Args:
        recipe: its name, or a file; None for the default.
        update: that is asked for; None for the recipe's.
        batch: that is asked for; None for the recipe's.
        pairs: of the data; the learning rate depends on it.

    Raises:
        InputError: there is no such recipe, or no first-order step stands for its optimiser.
    """
    name = recipe or (DEFAULT if update in (None, STANDS_FOR["adamw"]) else STEP)
    if name == STEP:
        return ONE_STEP | {"recipe": STEP}
    if batch is not None and batch < 1:
        raise InputError("--batch", f"{batch} is below 1")
    found = recipe_of(name)
    found = found if batch is None else replace(found, batch=batch)
    stands = STANDS_FOR.get(found.optimiser)
    if stands is None and update is None:
        known = ", ".join(STANDS_FOR)
        what = f"no first-order step stands for a run of {found.optimiser}"
        raise InputError("--recipe", what, f"one of {known}, or say --update too")
    return {
        "recipe": name,
        "update": stands,
        "learning_rate": found.share(pairs),
        "batch": found.batch,
        "loss": found.loss,
        "beta": found.beta,
        "loss_scope": found.loss_scope,
        "max_length": found.max_length,
    }
