"""No behaviour: for passes that only the stream at the SAE's site is wanted of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smda_jax.data.records import Prompts
from smda_jax.data.tokenised import Asked
from smda_jax.reading.behaviours.contract import Seen
from smda_jax.reading.network import Model


@dataclass(frozen=True)
class Nothing:
    """See `Behaviour`: Y is zero."""

    name = "nothing"
    unit = ""
    raised = "nothing"
    spot = None
    moves = False
    shows_above = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """See `Behaviour`."""
        return {}

    def ask(self, model: Model, prompts: Prompts) -> Sequence[Asked]:
        """See `Behaviour`."""
        return [Asked()] * len(prompts)

    def leaning(self, answer: Sequence[int]) -> float:
        """See `Behaviour`."""
        return math.nan

    def value(self, seen: Seen) -> Float[Array, " prompt"]:
        """See `Behaviour`."""
        return jnp.zeros(seen.h.shape[0], seen.h.dtype)

    def probability(self, y: Float[np.ndarray, " *any"]) -> Float[np.ndarray, " *any"]:
        """See `Behaviour`."""
        return np.zeros_like(y)
