"""How well figures of pairs say what training without some of them does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from smda_jax.policy.bootstrap import LEVEL


class Ceiling(NamedTuple):
    """How well any figure could predict what was measured.

    Attributes:
        reliability: rank correlation r of one run of every subset with another order of it; of
            more than two, the mean over pairs of them.
        value: √(nr / (1 + (n − 1) r)), that of a mean of n orders with what it would be without
            noise (Spearman and Brown).
    """

    reliability: Float[np.ndarray, " target"]
    value: Float[np.ndarray, " target"]


@dataclass(frozen=True)
class Lds:
    """The linear datamodeling score (Park et al., arXiv 2303.14186) of one figure.

    Attributes:
        value: over the subsets, the rank correlation of the sum of the members' figures with what
            training on the subset came to.
        draws: the same over resamples of the subsets.
    """

    value: Float[np.ndarray, " target"]
    draws: Float[np.ndarray, "draw target"]

    def summed_up(
        self, how: Callable[[np.ndarray], np.ndarray], targets: Sequence[int]
    ) -> tuple[float, float, float]:
        """(value, low, high) of a summary of some targets, such as their median; the ends are those
        of the middle 95 % of the resamples, NaN where there are none."""
        rows = list(targets)
        value = float(how(self.value[None, rows])[0])
        if not len(self.draws):
            return value, np.nan, np.nan
        ends = np.quantile(how(self.draws[:, rows]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return value, float(ends[0]), float(ends[1])


def membership(
    subsets: list[Int[np.ndarray, " some"]], pairs: int
) -> Float[np.ndarray, "set pair"]:
    """1 where a subset holds a pair."""
    found = np.zeros((len(subsets), pairs))
    for row, members in zip(found, subsets, strict=True):
        row[members] = 1
    return found


def lds(
    predicted: Float[np.ndarray, "set target"],
    realised: Float[np.ndarray, "set target"],
    count: int = 1000,
    seed: int = 0,
) -> Lds:
    """Rank correlation of predicted with realised shifts over the subsets, target by target.

    A figure that is the same on all subsets predicts nothing: 0.
    """
    drawn = np.random.default_rng(seed).integers(0, len(predicted), (count, len(predicted)))
    each = [_spearman(predicted[rows], realised[rows]) for rows in drawn]
    draws = np.stack(each) if each else np.zeros((0, predicted.shape[1]))
    return Lds(_spearman(predicted, realised), draws)


def ceiling(realised: Float[np.ndarray, "set order target"]) -> Ceiling:
    """Of subsets trained in two orders or more."""
    n = realised.shape[1]
    both = combinations(range(n), 2)
    r = np.mean([_spearman(realised[:, i], realised[:, j]) for i, j in both], axis=0)
    kept = np.clip(r, 0, 1)
    return Ceiling(r, np.sqrt(n * kept / (1 + (n - 1) * kept)))


def _spearman(
    a: Float[np.ndarray, "set target"], b: Float[np.ndarray, "set target"]
) -> Float[np.ndarray, " target"]:
    x, y = (rankdata(values, axis=0) for values in (a, b))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    size = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.divide((x * y).sum(axis=0), size, out=np.zeros(x.shape[1]), where=size > 0)


def average_precision(
    figure: Float[np.ndarray, " pair"], wanted: Bool[np.ndarray, " pair"]
) -> float:
    """Area under precision and recall, `Σ (R_k − R_{k−1}) P_k` over the distinct values of the
    figure, the highest first; a figure that knows nothing comes to the share of the wanted. Pairs
    without a figure (NaN) come last; NaN where none is wanted."""
    if not wanted.any():
        return np.nan
    known = np.where(np.isnan(figure), -np.inf, figure)
    order = np.argsort(-known, kind="stable")
    values, hits = known[order], wanted[order].cumsum()
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)
    recall, precision = hits[ends] / hits[-1], hits[ends] / (ends + 1)
    return float(np.sum(np.diff(recall, prepend=0) * precision))
