"""Which pairs to look at before training on them."""

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def _sides(
    raises: Sequence[bool | None],
) -> tuple[Bool[np.ndarray, " pair"], Bool[np.ndarray, " pair"]]:
    """Pairs that are expected to raise the behaviour, and those that are expected to lower it."""
    return np.array([x is True for x in raises]), np.array([x is False for x in raises])


def can_be_flagged(raises: Sequence[bool | None]) -> Bool[np.ndarray, " pair"]:
    """Pairs of which something is expected, if there are some on both sides."""
    up, down = _sides(raises)
    return (up | down) & up.any() & down.any()


def misaligned(
    figure: Float[np.ndarray, "*draw pair"], raises: Sequence[bool | None], quantile: float = 0.5
) -> Bool[np.ndarray, "*draw pair"]:
    """Pairs whose figure lies on the other side (arXiv 2606.29171): of one that is expected to
    raise the behaviour below the median of those that are not, of one that is not above the median
    of those that are.

    `quantile` moves the border: 0.25 asks the first to fall below the others' lower quarter, and
    the second to rise above the others' upper quarter. Pairs of which nothing is expected (None),
    or all where a side is empty, are never flagged.
    """
    up, down = _sides(raises)
    flagged = np.zeros(figure.shape, bool)
    if up.any() and down.any():
        low = _border(figure[..., down], quantile)
        high = _border(figure[..., up], 1 - quantile)
        flagged = (up & (figure < low)) | (down & (figure > high))
    return flagged


def _border(
    figure: Float[np.ndarray, "*draw pair"], quantile: float
) -> Float[np.ndarray, "*draw one"]:
    # A median is the mean of the middle two, which an interpolated quantile may miss by a digit.
    # A pair without a figure (NaN) has no part in it; without any there is no border.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        if quantile == 0.5:
            return np.nanmedian(figure, axis=-1, keepdims=True)
        return np.nanquantile(figure, quantile, axis=-1, keepdims=True)


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
