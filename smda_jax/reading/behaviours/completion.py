"""`completion`: the log-probability of a text that the data give for every prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smda_jax.data.records import Prompts
from smda_jax.data.tokenised import Asked
from smda_jax.reading.behaviours import Asking
from smda_jax.reading.behaviours.contract import Seen
from smda_jax.reading.network import Model
from smda_jax.runtime.precision import wide


@dataclass(frozen=True)
class Completion:
    """`Y = Σ_t log p(c_t | prompt, c_<t)` of a completion c of every prompt, in nats.

    Attributes:
        column: of the prompts' data, that holds the completions.
        less: a column of others, whose log-probability is taken off; empty for none.
        per_token: whether it is the mean over a completion's tokens.
        shows_above: see `Behaviour`.
    """

    column: str
    less: str
    per_token: bool
    shows_above: float

    name = "completion"
    spot = None
    moves = True

    @property
    def unit(self) -> str:
        """See `Behaviour`."""
        return "nats per token" if self.per_token else "nats"

    @property
    def raised(self) -> str:
        """See `Behaviour`."""
        rather = f" rather than its “{self.less}”" if self.less else ""
        return f"the answer is the prompt's “{self.column}”{rather}"

    @property
    def settings(self) -> dict[str, Any]:
        """See `Behaviour`."""
        return {"column": self.column, "less": self.less, "per_token": self.per_token}

    def ask(self, model: Model, prompts: Prompts) -> Sequence[Asked]:
        """See `Behaviour`: completions as they are tokenised in the rendered answer.

        Raises:
            InputError: a prompt has none.
        """
        columns = [prompts.texts_of(name) for name in (self.column, self.less) if name]
        tokens = [
            [model.chat.answer(prompt, text, prompts.where(i)) for text in own]
            for i, (prompt, *own) in enumerate(zip(prompts.text, *columns, strict=True))
        ]
        most = max(len(ids) for own in tokens for ids in own)
        return [self._asked(own, most) for own in tokens]

    def _asked(self, own: list[list[int]], most: int) -> Asked:
        target, weight = np.zeros((len(own), most), np.int32), np.zeros((len(own), most))
        for row, (ids, sign) in enumerate(zip(own, (1.0, -1.0), strict=False)):
            target[row, : len(ids)] = ids
            weight[row, : len(ids)] = sign / len(ids) if self.per_token else sign
        rows = tuple(tuple(ids[:-1]) for ids in own)
        return Asked(rows, most, {"target": target, "weight": weight})

    def leaning(self, answer: Sequence[int]) -> float:
        """See `Behaviour`."""
        return math.nan

    def value(self, seen: Seen) -> Float[Array, " prompt"]:
        """See `Behaviour`."""
        logits = seen.logits.astype(wide(seen.logits.dtype))
        target, weight = seen.given["target"], seen.given["weight"]
        logp = jax.nn.log_softmax(logits, axis=-1)
        own = jnp.take_along_axis(logp, target.reshape(*logp.shape[:2], 1), axis=-1)[..., 0]
        weight = weight.reshape(own.shape).astype(own.dtype)
        chosen = jnp.where(weight != 0, own, jnp.zeros_like(own)) * weight
        return chosen.reshape(target.shape[0], -1).sum(axis=-1)

    def probability(self, y: Float[np.ndarray, " *any"]) -> Float[np.ndarray, " *any"]:
        """See `Behaviour`."""
        return (y > self.shows_above).astype(float) if self.less or self.per_token else np.exp(y)


def make(asking: Asking) -> Completion:
    """The behaviour of a column of the prompts' data (`--column`, default completion)."""
    o = asking.options
    usual = 0.0 if o.less else math.log(0.5)
    shows = usual if o.shows_above is None else o.shows_above
    return Completion(o.column or "completion", o.less, o.per_token, shows)
