"""The linear readouts that engine `query` answers: scores of policies, or their coefficients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from smda_jax.engines.contract import Job
from smda_jax.engines.query.dataset import pull_readouts
from smda_jax.engines.query.program import Query, Weighting
from smda_jax.policy.influence import LinearReadouts, linear_readouts


@dataclass(frozen=True)
class Questions:
    """Numbered linear readouts of a job.

    Scores: number p is the score of policy p. Coefficients: ΔW_X of policy p and feature k is
    number p·d + k, ΔW_Y follows with as many, and mean ΔY is the last.
    """

    job: Job

    @property
    def scores_only(self) -> bool:
        """Whether scores are all that is asked."""
        return not self.job.keep.coefficients

    @property
    def features(self) -> int:
        """Of a policy."""
        return len(self.job.evaluation.feature_ids)

    @property
    def count(self) -> int:
        """How many readouts there are."""
        return len(self.job.policies) if self.scores_only else 2 * self._half + 1

    @property
    def _half(self) -> int:
        return len(self.job.policies) * self.features

    def pull(self, numbers: Sequence[int]) -> tuple[Query, ...]:
        """Gradients of some readouts, in ascending order of their numbers."""
        if self.scores_only:
            found = [self._weights(i, self.job.policies[i].W[None]) for i in numbers]
            z = np.concatenate([f.weight_x() for f in found]) * self.job.gate
            return (self._pull(z, np.concatenate([f.weight_y() for f in found])),)
        through_x = [self._coefficient(i) for i in numbers if i < self._half]
        ys = [i - self._half for i in numbers if self._half <= i < 2 * self._half]
        queries = []
        if through_x:
            z = np.concatenate([f.weight_x() for f in through_x]) * self.job.gate
            queries.append(self._pull(z, None))
        y = [self._coefficient(i).weight_y() for i in ys]
        if 2 * self._half in numbers:
            prompts = len(self.job.evaluation.y)
            y.append(np.full((1, prompts), 1 / prompts))
        if y:
            queries.append(self._pull(None, np.concatenate(y)))
        return tuple(queries)

    def _pull(self, z: np.ndarray | None, y: np.ndarray | None) -> Query:
        job, weighting = self.job, Weighting(z, y)
        update = job.stepping.update
        return pull_readouts(job.evaluation, weighting, update, batch_size=job.batch_size)

    def _coefficient(self, number: int) -> LinearReadouts:
        policy, k = divmod(number, self.features)
        return self._weights(policy, np.eye(self.features)[k][None])

    def _weights(self, policy: int, u: np.ndarray) -> LinearReadouts:
        e, p = self.job.evaluation, self.job.policies[policy]
        return linear_readouts(e.x.astype(np.float64), e.y.astype(np.float64), p, u)

    def split(
        self, value: Float[np.ndarray, "readout pair"]
    ) -> tuple[
        Float[np.ndarray, "policy pair feature"],
        Float[np.ndarray, "policy pair feature"],
        Float[np.ndarray, " pair"],
    ]:
        """Coefficients' values → ΔW_X and ΔW_Y, mean ΔY."""
        half, shape = self._half, (len(self.job.policies), self.features, value.shape[1])

        def unpack(v: np.ndarray) -> np.ndarray:
            return np.moveaxis(v.reshape(shape), 2, 1)

        return unpack(value[:half]), unpack(value[half : 2 * half]), value[2 * half]
