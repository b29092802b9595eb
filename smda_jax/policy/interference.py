"""Where a pair's effect falls: its dominant feature, and the share outside the features of its own
prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy.stats import rankdata


def dominant_feature(contribution: Float[np.ndarray, "pair feature"]) -> Int[np.ndarray, " pair"]:
    """Column of the largest |contribution| of each pair."""
    return np.abs(contribution).argmax(axis=1)


def off_target_share(
    contribution: Float[np.ndarray, "pair feature"], own: Bool[np.ndarray, "pair feature"]
) -> Float[np.ndarray, " pair"]:
    """Share of Σ|contribution| that falls on features not active on the pair's own prompt; NaN
    where nothing moves."""
    size = np.abs(contribution)
    with np.errstate(invalid="ignore"):
        return (size * ~own).sum(axis=1) / size.sum(axis=1)


def separation_auc(
    suspicion: Float[np.ndarray, " pair"], planted: Bool[np.ndarray, " pair"]
) -> float:
    """Probability that a planted pair is more suspicious than another one (ties count half); NaN
    without both kinds.

    Pairs without a figure (NaN) take no part.
    """
    known = ~np.isnan(suspicion)
    inside, outside = suspicion[planted & known], suspicion[~planted & known]
    if not len(inside) or not len(outside):
        return float("nan")
    difference = inside[:, None] - outside[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def landing(
    contribution: Float[np.ndarray, "pair feature"], member: Bool[np.ndarray, "pair group"]
) -> Float64[np.ndarray, "group feature"]:
    """Where the effect of groups of pairs falls: mean share of Σ|contribution| on each feature.

    A group may be the pairs whose own prompt has some feature, or those of a class or category. A
    row adds up to one; NaN where no pair of the group moves anything.
    """
    size = np.abs(np.asarray(contribution, np.float64))
    moves = size.sum(axis=1) > 0
    share, inside = (
        size[moves] / size[moves].sum(axis=1, keepdims=True),
        member[moves].astype(np.float64),
    )
    with np.errstate(invalid="ignore"):
        return inside.T @ share / inside.sum(axis=0)[:, None]


def typical(
    active: Bool[np.ndarray, "prompt feature"],
    group: Sequence[str | None],
    asked: Sequence[str | None],
) -> tuple[Bool[np.ndarray, "pair feature"], Bool[np.ndarray, " pair"]]:
    """Features active on at least half of the prompts of a pair's group, and which pairs' group has
    any prompt."""
    of = {name: active[[g == name for g in group]] for name in set(asked) - {None}}
    known = {name: rows.mean(axis=0) >= 0.5 for name, rows in of.items() if len(rows)}
    nothing = np.zeros(active.shape[1], bool)
    has = np.array([name in known for name in asked], bool)
    rows = [known.get(name, nothing) for name in asked]  # type: ignore[call-overload]
    return np.stack(rows), has


def correlations(
    columns: Float[np.ndarray, "row feature"],
) -> Float64[np.ndarray, "feature feature2"]:
    """Correlation of every two columns: of shifts ΔW over pairs (co-shifts), of activations over
    prompts; NaN if constant."""
    centred = np.asarray(columns, np.float64) - np.mean(columns, axis=0, dtype=np.float64)
    size = np.linalg.norm(centred, axis=0)
    # A constant column is constant up to the rounding of its mean.
    unit = centred / np.where(
        size > 1e-12 * np.abs(columns).max(axis=0, initial=0) * len(centred), size, np.nan
    )
    return unit.T @ unit


def cosines(
    directions: Float[np.ndarray, "hidden feature"],
) -> Float64[np.ndarray, "feature feature2"]:
    """Cosine of every two encoder directions."""
    unit = np.asarray(directions, np.float64)
    unit = unit / np.linalg.norm(unit, axis=0)
    return unit.T @ unit


class Geometry(NamedTuple):
    """Does one matrix between features explain another?

    Attributes:
        spearman: rank correlation of their entries above the diagonal.
        p: share of orders of the features (the one found among them) whose |spearman| is as large:
            a two-sided Mantel test.
        features: how many take part; those with an undefined entry do not.
    """

    spearman: float
    p: float
    features: int


def explains(
    geometry: Float[np.ndarray, "feature feature2"],
    of: Float[np.ndarray, "feature feature2"],
    *,
    orders: int = 999,
    seed: int = 0,
) -> Geometry:
    """Mantel's test (Cancer Research 27, 1967) with ranks: entries of a matrix are not independent,
    orders of features are.

    NaN with fewer than four features, or where all entries are equal.
    """
    known = np.isfinite(np.diag(geometry)) & np.isfinite(np.diag(of))
    n = int(known.sum())
    upper = np.triu_indices(n, 1)
    if n < 4:
        return Geometry(float("nan"), float("nan"), n)
    a, b = (m[np.ix_(known, known)] for m in (geometry, of))
    # Ranks of the entries stay the same under an order of the features: they are taken once.
    ranks = np.zeros((n, n))
    ranks[upper] = rankdata(np.round(a[upper], 12))  # what is equal up to rounding is equal
    ranks = ranks + ranks.T
    other = rankdata(np.round(b[upper], 12))
    other = other - other.mean()
    size = np.linalg.norm(ranks[upper] - ranks[upper].mean()) * np.linalg.norm(other)
    if not size:
        return Geometry(float("nan"), float("nan"), n)

    def spearman(order: np.ndarray) -> float:
        return float(ranks[np.ix_(order, order)][upper] @ other / size)

    rng, found = np.random.default_rng(seed), spearman(np.arange(n))
    drawn = np.array([spearman(rng.permutation(n)) for _ in range(orders)])
    return Geometry(
        found, float((1 + (np.abs(drawn) >= abs(found) - 1e-12).sum()) / (1 + orders)), n
    )
