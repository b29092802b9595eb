"""`contrast`: one set of beginnings of the answer against another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from smda_jax.data.records import Prompts
from smda_jax.data.targets import Targets
from smda_jax.data.tokenised import Asked
from smda_jax.errors import InputError
from smda_jax.reading.behaviours import Asking
from smda_jax.reading.behaviours.contract import Seen
from smda_jax.reading.behaviours.sequences import log_probabilities, quoted, sequences_of
from smda_jax.reading.network import Model


@dataclass(frozen=True)
class Contrast:
    """`Y = log Σ_q p(q | prompt) − log Σ_r p(r | prompt)` of two sets of sequences, in nats.

    Log-odds of an answer that begins with one of the first against one of the second.

    Attributes:
        targets: both sets, together prefix-free.
        first: how many of them are of the first set.
        texts: what they say.
        shows_above: see `Behaviour`; by default that the first set is the likelier one.
    """

    targets: Targets
    first: int
    texts: tuple[str, ...]
    shows_above: float = 0.0

    name = "contrast"
    unit = "nats"
    spot = None
    moves = True

    @property
    def raised(self) -> str:
        """See `Behaviour`."""
        one, other = quoted(self.texts[: self.first]), quoted(self.texts[self.first :])
        return f"the answer begins with {one} rather than {other} (log-odds)"

    @property
    def settings(self) -> dict[str, Any]:
        """See `Behaviour`."""
        sequences = [list(sequence) for sequence in self.targets.sequences]
        return {"targets": sequences[: self.first], "against": sequences[self.first :]}

    def leaning(self, answer: Sequence[int]) -> float:
        """See `Behaviour`: what it begins with."""
        found = self.targets.begin(answer)
        return 0.0 if found is None else 1.0 if found < self.first else -1.0

    def ask(self, model: Model, prompts: Prompts) -> Sequence[Asked]:
        """See `Behaviour`."""
        return [Asked(self.targets.rows, self.targets.positions)] * len(prompts)

    def value(self, seen: Seen) -> Float[Array, " prompt"]:
        """See `Behaviour`."""
        found = log_probabilities(self.targets, seen.logits)
        one, other = found[:, : self.first], found[:, self.first :]
        return jax.nn.logsumexp(one, axis=-1) - jax.nn.logsumexp(other, axis=-1)

    def probability(self, y: Float[np.ndarray, " *any"]) -> Float[np.ndarray, " *any"]:
        """See `Behaviour`."""
        return 1 / (1 + np.exp(-y))


def make(asking: Asking) -> Contrast:
    """The behaviour of two sets of texts, or of token ids.

    Raises:
        InputError: one set is empty, or both together are not prefix-free.
    """
    o = asking.options
    if not (o.targets or o.target_ids) or not (o.against or o.against_ids):
        what = "compares two sets of beginnings, and one of them is not said"
        raise InputError("--behaviour contrast", what, "--targets Yes --against No")
    texts, one = sequences_of(asking.model, o.targets, o.target_ids, "targets")
    more, other = sequences_of(asking.model, o.against, o.against_ids, "against")
    targets = Targets.of([*one, *other], "targets and against")
    shows = 0.0 if o.shows_above is None else o.shows_above
    return Contrast(targets, len(one), texts + more, shows)
