"""Target sequences whose total probability is the behaviour Y."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from smda_jax.errors import InputError

# "I can't" with either apostrophe: the two refusal sequences of the paper.
REFUSALS = ("I can't", "I can\u2019t")


@dataclass(frozen=True)
class Targets:
    """A prefix-free set of token sequences, arranged so that shared histories are run once.

    A sequence is scored under its own history: the prompt and its own earlier tokens. Sequences
    whose histories are the same, or one the beginning of the other, share a row: of the paper's
    `[40, 649, 956]` and `[40, 649, 1431]` both are read from the single row `prompt + [40, 649]`.

    Attributes:
        sequences: the token sequences.
        rows: the distinct longest histories.
        row: the row that each sequence is read from.
    """

    sequences: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[int, ...], ...]
    row: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], where: object = "targets") -> "Targets":
        """Raises InputError: the set is empty, holds an empty sequence, or is not prefix-free."""
        own = tuple(tuple(int(t) for t in s) for s in sequences)
        if not own or not all(own):
            raise InputError(where, "needs at least one sequence, each with at least one token")
        for i, a in enumerate(own):
            for j, b in enumerate(own):
                if i != j and b[: len(a)] == a:
                    raise InputError(
                        where,
                        f"not prefix-free: {list(a)} begins {list(b)}, so their probabilities "
                        "would be counted twice",
                        "drop the longer one",
                    )
        histories = sorted({s[:-1] for s in own}, key=lambda h: (len(h), h))
        rows = tuple(
            h for h in histories if not any(o != h and o[: len(h)] == h for o in histories)
        )
        row = tuple(next(i for i, r in enumerate(rows) if r[: len(s) - 1] == s[:-1]) for s in own)
        return cls(own, rows, row)

    def begin(self, answer: Sequence[int]) -> int | None:
        """Which of the sequences an answer begins with; None if with none."""
        own = tuple(answer[: self.positions])
        return next((i for i, s in enumerate(self.sequences) if own[: len(s)] == s), None)

    @property
    def positions(self) -> int:
        """How many positions of a row are read: the length of the longest sequence."""
        return max(map(len, self.sequences))

    def padded(
        self,
    ) -> tuple[Int[np.ndarray, "sequence position"], Bool[np.ndarray, "sequence position"]]:
        """Token ids of the sequences, and which of them are real."""
        ids = np.zeros((len(self.sequences), self.positions), np.int32)
        real = np.zeros(ids.shape, bool)
        for i, s in enumerate(self.sequences):
            ids[i, : len(s)] = s
            real[i, : len(s)] = True
        return ids, real
