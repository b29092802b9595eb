"""Widths that rows are padded to: every width is a compilation, every padded token work."""

from collections.abc import Sequence

import numpy as np

GRAIN = 8  # tokens: widths are multiples of it


def in_grains(length: int) -> int:
    """A length rounded up to whole grains."""
    return -(-length // GRAIN) * GRAIN


def padded_length(length: int) -> int:
    """The bucket of a length: a multiple of a quarter of its power of two, at least of eight.

    Less than a quarter of it is padding.
    """
    step = max(8, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step


def bucket_widths(lengths: Sequence[int], padding_budget: float | int = 0) -> list[int]:
    """The widths that items are padded to, multiples of `GRAIN`.

    There are as many as each save at least `padding_budget` tokens of padding. A pure function of
    its arguments, found by dynamic programming.
    """
    widths, count = np.unique(-(-np.asarray(lengths) // GRAIN) * GRAIN, return_counts=True)
    up_to = count.cumsum()
    # cost[j]: padded tokens of everything up to width j, by the best choice of so many widths
    # that ends in j
    cost = (widths * up_to).astype(float)
    triangle = np.tri(len(widths), k=-1, dtype=bool)
    own = np.where(triangle, widths[:, None] * (up_to[:, None] - up_to), np.inf)
    before = [np.full(len(widths), -1)]
    while len(before) < len(widths):
        options = own + cost  # [this width, the one before it]
        best = options.argmin(axis=1)
        if not cost[-1] - options[-1].min() >= max(padding_budget, 1):
            break
        cost = np.take_along_axis(options, best[:, None], axis=1)[:, 0]
        before.append(best)
    chosen, j = [], len(widths) - 1
    for previous in reversed(before):
        chosen.append(int(widths[j]))
        j = previous[j]
    return chosen[::-1]
