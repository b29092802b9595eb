"""The functionals that engine `query` answers: a score per policy, or every coefficient's pathways."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smda_jax.jacobian import ask
from smda_jax.jacobian.evaluation import Evaluation
from smda_jax.jacobian.query import Query
from smda_jax.model.llama import Params
from smda_jax.policy.influence import Functionals, functionals
from smda_jax.runs.policies import Policy


@dataclass(frozen=True)
class Questions:
    """Numbered functionals of a run.

    Scores: number p is the score of policy p. Coefficients: ΔW_X of policy p and feature k is number p·d + k, ΔW_Y follows
    with as many, and mean ΔY is the last.
    """

    policies: tuple[Policy, ...]
    features: int
    scores_only: bool
    gate: np.ndarray
    at_a_time: int

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.policies) if self.scores_only else 2 * self._half + 1

    @property
    def _half(self) -> int:
        return len(self.policies) * self.features

    def pull(self, e: Evaluation, ids: Sequence[int], scaling: Params | None, block: int) -> tuple[Query, ...]:
        """Gradients of some functionals, in ascending order of their numbers."""
        options = {"scaling": scaling, "block": block}
        if self.scores_only:
            own = [self._weights(e, i, self.policies[i].W[None]) for i in ids]
            z, y = np.concatenate([f.weight_x() for f in own]), np.concatenate([f.weight_y() for f in own])
            return (ask.pull_policy(e, z * self.gate, y, **options),)
        through_x = [self._coefficient(e, i) for i in ids if i < self._half]
        through_y = [self._coefficient(e, i - self._half) for i in ids if self._half <= i < 2 * self._half]
        queries = []
        if through_x:
            z = np.concatenate([f.weight_x() for f in through_x]) * self.gate
            queries.append(ask.pull_policy(e, z, None, **options))
        y = [f.weight_y() for f in through_y]
        if 2 * self._half in ids:
            y.append(np.full((1, len(e.y)), 1 / len(e.y)))
        if y:
            queries.append(ask.pull_policy(e, None, np.concatenate(y), **options))
        return tuple(queries)

    def _coefficient(self, e: Evaluation, number: int) -> Functionals:
        policy, k = divmod(number, self.features)
        return self._weights(e, policy, np.eye(self.features)[k][None])

    def _weights(self, e: Evaluation, policy: int, u: np.ndarray) -> Functionals:
        p = self.policies[policy]
        return functionals(e.x.astype(np.float64), e.y.astype(np.float64), p.W, p.alpha, u, rows=p.rows)

    def split(self, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients' values [functional, pair] → ΔW_X and ΔW_Y [policy, pair, feature], mean ΔY [pair]."""
        half, pairs = self._half, value.shape[1]

        def unpack(v: np.ndarray) -> np.ndarray:
            return np.moveaxis(v.reshape(len(self.policies), self.features, pairs), 2, 1)

        return unpack(value[:half]), unpack(value[half : 2 * half]), value[2 * half]
