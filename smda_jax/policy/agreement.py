"""Do two figures order the pairs alike? Over all pairs, and within each class, whose label alone
may explain an order."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import kendalltau, spearmanr


class Agreement(NamedTuple):
    """Rank agreement of two figures over the pairs of one class; NaN where it is not defined.

    Attributes:
        among: `all`, or the class.
        figure: one of them.
        other: the other.
        pairs: how many have both figures.
        spearman: rank correlation.
        kendall: tau-b.
        top: how many of the pairs that one puts first are compared.
        overlap: share of those that the other puts there too; equals share their places.
        expected: `top / pairs`, the overlap of figures that know nothing of each other.
    """

    among: str
    figure: str
    other: str
    pairs: int
    spearman: float
    kendall: float
    top: int
    overlap: float
    expected: float


def classes_of(label: Sequence[str | None]) -> dict[str, Int[np.ndarray, " row"]]:
    """Rows of `all`, and of every class where there are several; what has no label is
    `unlabelled`."""
    named = np.array([x or "unlabelled" for x in label])
    rows = {"all": np.arange(len(named))}
    names = list(dict.fromkeys(named.tolist()))
    return (
        rows if len(names) < 2 else rows | {name: np.flatnonzero(named == name) for name in names}
    )


def rank_agreement(
    figures: Mapping[str, Float[np.ndarray, " pair"]], label: Sequence[str | None], top: int = 10
) -> list[Agreement]:
    """Agreement of every two figures (higher is more), over all pairs and within each class.

    A pair without one of the two (NaN) takes no part in their comparison.
    """
    rows = []
    for among, own in classes_of(label).items():
        for (name, a), (other, b) in combinations(figures.items(), 2):
            known = own[~np.isnan(a[own]) & ~np.isnan(b[own])]
            rows.append(Agreement(among, name, other, *_agree(a[known], b[known], top)))
    return rows


def _agree(a: np.ndarray, b: np.ndarray, top: int) -> tuple[int, float, float, int, float, float]:
    n = len(a)
    if n < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return n, np.nan, np.nan, 0, np.nan, np.nan
    rho = float(spearmanr(a, b).statistic)  # type: ignore[union-attr]
    tau = float(kendalltau(a, b).statistic)  # type: ignore[union-attr]
    k = min(top, n // 2)
    return n, rho, tau, k, float(_first(a, k) @ _first(b, k)) / k, k / n


def _first(values: np.ndarray, k: int) -> np.ndarray:
    """Who is among the first k: those that share the last place of them hold equal parts of what is
    left."""
    last = np.sort(values)[-k]
    above, at = values > last, values == last
    return above + at * ((k - above.sum()) / at.sum())
