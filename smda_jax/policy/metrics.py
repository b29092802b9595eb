"""How well a behaviour is shown where it should be, and nowhere else."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from smda_jax.policy.bootstrap import LEVEL, resamples

METRICS = ("correctness", "recall", "precision", "f1")


def soft_metrics(
    p: Float[np.ndarray, " prompt"],
    should: Bool[np.ndarray, " prompt"],
    weight: Float[np.ndarray, "*draw prompt"] | None = None,
) -> dict[str, Float[np.ndarray, "*draw"]]:
    """Metrics of probabilities (the evaluation of arXiv 2606.29171's authors).

    correctness: mean of p where it should be shown, of 1 − p elsewhere; recall: mean of p where it
    should be; precision: `Σ p` there over `Σ p` everywhere; f1: their harmonic mean. What has
    nothing to divide by is 0, as there. With verdicts (p 0 or 1) they are accuracy, recall,
    precision and F1 as usual.

    Args:
        p: how probable the behaviour is on each prompt.
        should: whether it should be shown.
        weight: how often each prompt counts; default once.
    """
    w = np.ones(len(p)) if weight is None else weight
    right, inside = np.where(should, p, 1 - p), np.where(should, p, 0)
    correctness = _over(w @ right, w.sum(axis=-1))
    recall, precision = _over(w @ inside, w @ should.astype(float)), _over(w @ inside, w @ p)
    f1 = _over(2 * recall * precision, recall + precision)
    return dict(zip(METRICS, (correctness, recall, precision, f1), strict=True))


def _over(a: Any, b: Any) -> np.ndarray:
    above, below = np.asarray(a, float), np.asarray(b, float)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


@dataclass(frozen=True)
class Interval:
    """A figure, and the middle 95 % of it over resamples of the prompts."""

    value: float
    low: float
    high: float


def with_intervals(
    p: Float[np.ndarray, " prompt"], should: Bool[np.ndarray, " prompt"], count: int, seed: int
) -> dict[str, Interval]:
    """`soft_metrics`, each with its interval; NaN for an interval of no resamples."""
    value = soft_metrics(p, should)
    drawn = soft_metrics(p, should, resamples(len(p), count, seed)) if count else {}
    return {name: _interval(float(value[name]), drawn.get(name)) for name in METRICS}


def mean_interval(p: Float[np.ndarray, " prompt"], count: int, seed: int) -> Interval:
    """The mean of p with its interval."""
    drawn = resamples(len(p), count, seed) @ p / len(p) if count else None
    return _interval(float(p.mean()), drawn)


def _interval(value: float, drawn: np.ndarray | None) -> Interval:
    if drawn is None:
        return Interval(value, np.nan, np.nan)
    edges = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(edges[0]), float(edges[1]))
