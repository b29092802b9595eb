"""A behaviour of one's own: any JAX function of logits and stream."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from smda_jax.data.records import Prompts, digest
from smda_jax.data.tokenised import Asked
from smda_jax.reading.behaviours.contract import Seen, Spot
from smda_jax.reading.network import Model


@dataclass(frozen=True)
class Function:
    """A behaviour made of a function; see `Behaviour`.

    `--behaviour module:name` takes one that an importable module holds under a name.

    Attributes:
        function: of what is seen → Y of every prompt; differentiable, in JAX.
        unit: see `Behaviour`.
        raised: see `Behaviour`.
        name: see `Behaviour`.
        appended: texts that are appended to every prompt, each in a row of its own; as many
            positions are read as the longest has tokens, and one.
        positions: how many are read instead; 0 where the function looks at no logits.
        spot: see `Behaviour`.
        shows_above: see `Behaviour`.
    """

    function: Callable[[Seen], Float[Array, " prompt"]]
    unit: str
    raised: str
    name: str = "function"
    appended: tuple[str, ...] = ("",)
    positions: int | None = None
    spot: Spot | None = None
    shows_above: float = 0.0

    moves = True

    @property
    def settings(self) -> dict[str, Any]:
        """See `Behaviour`."""
        spot = None if self.spot is None else self.spot._asdict()
        try:  # another function of the same name is another behaviour
            source = digest(inspect.getsource(self.function))
        except (OSError, TypeError):
            source = None
        asked = {"appended": list(self.appended), "positions": self.positions, "spot": spot}
        return asked | {"source_sha256": source}

    def ask(self, model: Model, prompts: Prompts) -> Sequence[Asked]:
        """See `Behaviour`."""
        encode = model.chat.beginning
        rows = tuple(tuple(encode(text, self.name)) if text else () for text in self.appended)
        most = max(map(len, rows)) + 1
        asked = Asked(rows, most if self.positions is None else self.positions)
        return [asked] * len(prompts)

    def leaning(self, answer: Sequence[int]) -> float:
        """See `Behaviour`."""
        return math.nan

    def value(self, seen: Seen) -> Float[Array, " prompt"]:
        """See `Behaviour`."""
        return self.function(seen)

    def probability(self, y: Float[np.ndarray, " *any"]) -> Float[np.ndarray, " *any"]:
        """See `Behaviour`."""
        return (y > self.shows_above).astype(float)
