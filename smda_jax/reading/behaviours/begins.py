"""`begins`: the answer begins with one of some token sequences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from smda_jax.data.records import Prompts
from smda_jax.data.targets import REFUSALS, Targets
from smda_jax.data.tokenised import Asked
from smda_jax.reading.behaviours import Asking
from smda_jax.reading.behaviours.contract import Seen
from smda_jax.reading.behaviours.sequences import log_probabilities, quoted, sequences_of
from smda_jax.reading.network import Model


@dataclass(frozen=True)
class Begins:
    """`Y = logsumexp_q Σ_t log p(q_t | prompt, q_<t)` over the target sequences q, in nats.

    Attributes:
        targets: the sequences, a prefix-free set.
        texts: what they say.
        shows_above: see `Behaviour`; by default that the answer is the likelier one.
    """

    targets: Targets
    texts: tuple[str, ...] = ()
    shows_above: float = math.log(0.5)

    name = "begins"
    unit = "nats"
    spot = None
    moves = True

    @property
    def raised(self) -> str:
        """See `Behaviour`."""
        return f"the answer begins with {quoted(self.texts) or 'a target sequence'}"

    @property
    def settings(self) -> dict[str, Any]:
        """See `Behaviour`."""
        return {"targets": [list(sequence) for sequence in self.targets.sequences]}

    def leaning(self, answer: Sequence[int]) -> float:
        """See `Behaviour`: what it begins with."""
        return float(self.targets.begin(answer) is not None)

    def ask(self, model: Model, prompts: Prompts) -> Sequence[Asked]:
        """See `Behaviour`: each sequence but its last token is appended; shared ones run once."""
        return [Asked(self.targets.rows, self.targets.positions)] * len(prompts)

    def value(self, seen: Seen) -> Float[Array, " prompt"]:
        """See `Behaviour`."""
        return jax.nn.logsumexp(log_probabilities(self.targets, seen.logits), axis=-1)

    def probability(self, y: Float[np.ndarray, " *any"]) -> Float[np.ndarray, " *any"]:
        """See `Behaviour`."""
        return np.exp(y)


def make(asking: Asking) -> Begins:
    """The behaviour of some texts, or of token ids, which replace them.

    Raises:
        InputError: the set is not prefix-free, or an id is not in the vocabulary.
    """
    o = asking.options
    texts, sequences = sequences_of(asking.model, o.targets or REFUSALS, o.target_ids, "targets")
    made = Begins(Targets.of(sequences, "target_ids" if o.target_ids else "targets"), texts)
    return made if o.shows_above is None else Begins(made.targets, texts, o.shows_above)
