"""`column`: Y is given in the data, such as a judge's score or a person's label."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from smda_jax.data.records import Prompts
from smda_jax.data.tokenised import Asked
from smda_jax.reading.behaviours import Asking
from smda_jax.reading.behaviours.contract import Seen
from smda_jax.reading.network import Model


@dataclass(frozen=True)
class Column:
    """Y as a column of the prompts' data has it. A step does not move it: ΔY is zero.

    Attributes:
        column: its name.
        shows_above: see `Behaviour`.
    """

    column: str
    shows_above: float

    name = "column"
    spot = None
    moves = False

    @property
    def unit(self) -> str:
        """See `Behaviour`."""
        return f"of {self.column}"

    @property
    def raised(self) -> str:
        """See `Behaviour`."""
        return f"“{self.column}”, as the data give it, is higher"

    @property
    def settings(self) -> dict[str, Any]:
        """See `Behaviour`."""
        return {"column": self.column}

    def ask(self, model: Model, prompts: Prompts) -> Sequence[Asked]:
        """See `Behaviour`.

        Raises:
            InputError: a prompt has no number there.
        """
        values = np.array(prompts.numbers_of(self.column))[:, None]
        return [Asked(given={"y": value}) for value in values]

    def leaning(self, answer: Sequence[int]) -> float:
        """See `Behaviour`."""
        return math.nan

    def value(self, seen: Seen) -> Float[Array, " prompt"]:
        """See `Behaviour`."""
        return seen.given["y"][:, 0].astype(seen.h.dtype)

    def probability(self, y: Float[np.ndarray, " *any"]) -> Float[np.ndarray, " *any"]:
        """See `Behaviour`."""
        return (y > self.shows_above).astype(float)


def make(asking: Asking) -> Column:
    """The behaviour that a column of the prompts' data gives (`--column`, default y).

    It is shown above ½ where the column holds 0 and 1, else above the column's mean.
    """
    o, name = asking.options, asking.options.column or "y"
    values = np.array(asking.prompts.numbers_of(name))
    usual = 0.5 if set(values.tolist()) <= {0.0, 1.0} else float(values.mean())
    return Column(name, usual if o.shows_above is None else o.shows_above)
