"""`begins`: the answer begins with one of some token sequences."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from smda_jax.data.targets import REFUSALS, Targets
from smda_jax.reading.behaviours import Options
from smda_jax.reading.behaviours.contract import Seen
from smda_jax.reading.behaviours.sequences import log_probabilities
from smda_jax.reading.network import Model


@dataclass(frozen=True)
class Begins:
    """`Y = logsumexp_q Σ_t log p(q_t | prompt, q_<t)` over the target sequences q, in nats.

    Attributes:
        targets: the sequences, a prefix-free set.
        texts: what they say.
    """

    targets: Targets
    texts: tuple[str, ...] = ()

    name = "begins"
    unit = "nats"
    reads_stream = False
    shows_above = math.log(0.5)  # it is the likelier answer

    @property
    def raised(self) -> str:
        """See `Behaviour`."""
        shown = " or ".join(f"“{text}”" for text in self.texts) or "a target sequence"
        return f"the answer begins with {shown}"

    @property
    def settings(self) -> dict[str, Any]:
        """See `Behaviour`."""
        return {"targets": [list(sequence) for sequence in self.targets.sequences]}

    @property
    def histories(self) -> tuple[tuple[int, ...], ...]:
        """See `Behaviour`: each sequence but its last token; shared ones run once."""
        return self.targets.rows

    @property
    def positions(self) -> int:
        """See `Behaviour`."""
        return self.targets.positions

    def value(self, seen: Seen) -> Float[Array, " prompt"]:
        """See `Behaviour`."""
        sequences = log_probabilities(self.targets, seen.logits)
        return jax.nn.logsumexp(sequences, axis=-1)


def make(model: Model, options: Options) -> Begins:
    """The behaviour of some texts, or of token ids, which replace them.

    Raises:
        InputError: the set is not prefix-free, or an id is not in the vocabulary.
    """
    where = "target_ids" if options.target_ids else "targets"
    texts = options.targets or REFUSALS
    sequences = [list(ids) for ids in options.target_ids]
    targets = Targets.of(sequences or [model.chat.encode(text) for text in texts], where)
    for sequence in targets.sequences:
        model.refuse_unknown_tokens(sequence, where)
    if options.target_ids:
        texts = tuple(model.chat.decode(ids) for ids in options.target_ids)
    return Begins(targets, tuple(texts))
