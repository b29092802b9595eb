"""Where a pair's effect falls: its dominant feature, and the share outside the features of its own prompt."""

import numpy as np
from jaxtyping import Bool, Float, Int


def dominant_feature(contribution: Float[np.ndarray, "pair feature"]) -> Int[np.ndarray, " pair"]:
    """Column of the largest |contribution| of each pair."""
    return np.abs(contribution).argmax(axis=1)


def off_target_share(
    contribution: Float[np.ndarray, "pair feature"], own: Bool[np.ndarray, "pair feature"]
) -> Float[np.ndarray, " pair"]:
    """Share of Σ|contribution| that falls on features not active on the pair's own prompt; NaN where nothing moves."""
    size = np.abs(contribution)
    with np.errstate(invalid="ignore"):
        return (size * ~own).sum(axis=1) / size.sum(axis=1)


def separation_auc(suspicion: Float[np.ndarray, " pair"], planted: Bool[np.ndarray, " pair"]) -> float:
    """Probability that a planted pair is more suspicious than another one (ties count half); NaN without both kinds.

    Pairs without a figure (NaN) take no part.
    """
    known = ~np.isnan(suspicion)
    inside, outside = suspicion[planted & known], suspicion[~planted & known]
    if not len(inside) or not len(outside):
        return float("nan")
    difference = inside[:, None] - outside[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())
