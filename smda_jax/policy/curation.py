"""Which pairs to look at before training on them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def can_be_flagged(label: Sequence[str | None]) -> Bool[np.ndarray, " pair"]:
    """Pairs about harmful or harmless prompts, if there are both."""
    kinds = [
        np.array([str(x).startswith(f"{kind}_") for x in label]) for kind in ("harmful", "harmless")
    ]
    return (kinds[0] | kinds[1]) & kinds[0].any() & kinds[1].any()


def misaligned(
    score: Float[np.ndarray, "*draw pair"], label: Sequence[str | None], quantile: float = 0.5
) -> Bool[np.ndarray, "*draw pair"]:
    """Pairs whose score lies on the other class's side (arXiv 2606.29171): of a pair about a
    harmful prompt below the harmless pairs' median, of one about a harmless prompt above the
    harmful pairs'.

    `quantile` moves the border: 0.25 asks a harmful pair to fall below the harmless pairs' lower
    quarter, and a harmless one to rise above the harmful pairs' upper quarter. Pairs of other
    labels, or where a class is empty, are never flagged.
    """
    harmful, harmless = (
        np.array([str(x).startswith(f"{kind}_") for x in label]) for kind in ("harmful", "harmless")
    )
    flagged = np.zeros(score.shape, bool)
    if harmful.any() and harmless.any():
        low = np.quantile(score[..., harmless], quantile, axis=-1, keepdims=True)
        high = np.quantile(score[..., harmful], 1 - quantile, axis=-1, keepdims=True)
        flagged = (harmful & (score < low)) | (harmless & (score > high))
    return flagged


def far_off_target(
    off_target: Float[np.ndarray, " pair"], label: Sequence[str | None], quantile: float = 0.9
) -> Bool[np.ndarray, " pair"]:
    """Pairs whose effect falls elsewhere more than that of `quantile` of their class; a pair
    without a share (NaN) does not."""
    far = np.zeros(len(label), bool)
    for name in dict.fromkeys(label):
        own = np.array([x == name for x in label]) & ~np.isnan(off_target)
        if own.any():
            far |= own & (off_target > np.quantile(off_target[own], quantile))
    return far
