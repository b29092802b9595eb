"""How sure a run's figures are: resamples of the prompts, and of the pairs where a figure speaks of
a class."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from smda_jax.errors import InputError
from smda_jax.policy.bootstrap import Interval, Refits, interval, refit, resamples, shifts
from smda_jax.policy.curation import can_be_flagged, misaligned
from smda_jax.policy.ridge import FittedPolicy


@dataclass(frozen=True)
class Confidence:
    """Of one policy. `scores` are every pair's on every resample; intervals hold 95 % of the
    resamples.

    Attributes:
        coefficients: of W.
        delta_w: of every pair's shift.
        score: of every pair's score.
        scores: the scores themselves [resample, pair].
        mean_dy: of every pair's mean ΔY.
        mean_dys: the means themselves [resample, pair].
    """

    coefficients: Interval
    delta_w: Interval
    score: Interval
    scores: Float[np.ndarray, "resample pair"]
    mean_dy: Interval
    mean_dys: Float[np.ndarray, "resample pair"]

    def classes(
        self, labels: list[str | None], score: Float[np.ndarray, " pair"], seed: int
    ) -> dict[str, Interval]:
        """Of every class's median score (arrays of one); a resample draws the class's pairs too."""
        rng, out = np.random.default_rng([seed, 1]), {}
        for name in dict.fromkeys(labels):
            in_class = np.flatnonzero([x == name for x in labels])
            drawn = in_class[rng.integers(0, len(in_class), (len(self.scores), len(in_class)))]
            draws = np.median(np.take_along_axis(self.scores, drawn, axis=1), axis=1, keepdims=True)
            out[name or "unlabelled"] = interval(draws, np.median(score[in_class], keepdims=True))
        return out

    @staticmethod
    def flag_stability(
        draws: Float[np.ndarray, "resample pair"],
        raises: list[bool | None],
        flagged: Bool[np.ndarray, " pair"],
    ) -> Float[np.ndarray, " pair"]:
        """In how many of the resamples a pair is flagged as it is in all prompts, or not; NaN where
        it never can be."""
        return np.where(
            can_be_flagged(raises),
            (misaligned(draws, raises) == flagged[None]).mean(axis=0),
            np.nan,
        )


@dataclass
class Resampled:
    """A policy on resamples of its prompts, waiting for the pairs' changes, block by block."""

    X: Float[np.ndarray, "prompt feature"]
    policy: FittedPolicy
    refits: Refits
    low: list[np.ndarray]
    high: list[np.ndarray]
    stability: list[np.ndarray]
    scores: list[np.ndarray]
    mean_dys: list[np.ndarray]
    rows: list[int]

    @classmethod
    def of(
        cls,
        X: Float[np.ndarray, "prompt feature"],
        Y: Float[np.ndarray, " prompt"],
        policy: FittedPolicy,
        count: int,
        seed: int,
    ) -> "Resampled":
        """Refits the policy on `count` resamples of its own prompts.

        Raises:
            InputError: a resample has no policy (α = 0, and dependent features in it).
        """
        rows, weights = policy.rows, resamples(len(policy.rows), count, seed)
        refits = refit(X[rows], Y[rows], policy.alpha, weights)
        singular = int((~np.isfinite(np.asarray(refits.W)).all(axis=1)).sum())
        if singular:
            why = f"XᵀX + {policy.alpha:g}·I cannot be factored in {singular} of {count} resamples"
            raise InputError("bootstrap", why, "a larger --alpha, or --bootstrap 0")
        return cls(X[rows], policy, refits, [], [], [], [], [], [])

    def add(
        self,
        delta_x: Float[np.ndarray, "pair prompt feature"],
        delta_y: Float[np.ndarray, "pair prompt"],
        delta_w: Float[np.ndarray, "pair feature"],
        at: Int[np.ndarray, " pair"],
    ) -> None:
        """A block of pairs, whose rows are `at`, and their shifts in all prompts."""
        rows = self.policy.rows
        for draws, value in zip(
            shifts(self.X, self.refits, delta_x[:, rows], delta_y[:, rows]), delta_w, strict=True
        ):
            found = interval(draws, value)
            self.low.append(found.low)
            self.high.append(found.high)
            self.stability.append(found.sign_stability)
            self.scores.append(np.einsum("rk,rk->r", np.asarray(self.refits.W), draws))
        weights = np.asarray(self.refits.weights)
        self.mean_dys += list((weights @ delta_y[:, rows].T.astype(np.float64) / len(rows)).T)
        self.rows += at.tolist()

    def finish(
        self, score: Float[np.ndarray, " pair"], mean_dy: Float[np.ndarray, " pair"]
    ) -> Confidence:
        """Everything, in the pairs' order; `score` and `mean_dy` are those in all prompts."""
        order = np.argsort(self.rows)
        held = (self.low, self.high, self.stability, self.scores, self.mean_dys)
        low, high, stability, scores, mean_dys = (np.stack(v)[order] for v in held)
        coefficients = interval(np.asarray(self.refits.W), self.policy.W)
        return Confidence(
            coefficients,
            Interval(low, high, stability),
            interval(scores.T, score),
            scores.T,
            interval(mean_dys.T, mean_dy),
            mean_dys.T,
        )
