"""Chunks of a data set: which rows are run together, and in which layout."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from smda_jax.data.batch.layouts import GROUPS, Layout, Packed, Padded, gather, scatter
from smda_jax.data.batch.widths import bucket_widths, in_grains


class Chunk(NamedTuple):
    """Rows of a data set that are run together, and how they lie in a batch."""

    rows: Int[np.ndarray, " row"]
    layout: Layout

    def of_rows(self, rows: Int[np.ndarray, " row"]) -> "Chunk":
        """The same layout of other rows."""
        return self._replace(rows=rows)

    def gather(self, values: np.ndarray, axis: int = 0) -> np.ndarray:
        """The data set's values → the batch's slots; zero where a slot repeats a row."""
        return gather(self.layout, np.take(values, self.rows, axis), axis)

    def scatter(self, values: np.ndarray, axis: int = 0) -> np.ndarray:
        """The batch's slots → values of the chunk's rows, in their order."""
        return scatter(self.layout, values, len(self.rows), axis)


def padded_chunks(
    lengths: Sequence[int], most: int, padding_budget: float | int = 0
) -> Iterator[Chunk]:
    """Chunks of at most `most` items of one width (see `bucket_widths`), of even sizes.

    A pure function of its arguments.
    """
    widths = bucket_widths(lengths, padding_budget)
    bucket = np.searchsorted(widths, lengths)
    for index, width in enumerate(widths):
        own = np.flatnonzero(bucket == index)
        size = -(-len(own) // -(-len(own) // most))
        for start in range(0, len(own), size):
            yield Chunk(own[start : start + size], Padded(width, size))


def packed_chunks(
    lengths: Sequence[int], most: int, lanes: int = 1, scored: Sequence[int] | None = None
) -> Iterator[Chunk]:
    """Chunks of at most `most` items, all with the same mix of lengths.

    Every chunk has its share of the long and of the short, so one compiled program serves all, with
    hardly a token of padding. A pure function of its arguments.

    Args:
        lengths: tokens of each item beyond the shared ones.
        most: items of a chunk.
        lanes: one for each group of devices.
        scored: scored positions of each item.
    """
    count = -(-len(lengths) // most)
    order = np.argsort(-np.asarray(lengths), kind="stable")
    chunks = [order[i::count] for i in range(count)]
    items = -(-len(chunks[0]) // lanes)
    layout = Packed(lanes, items, (0,) * min(GROUPS, items), 0)
    places = layout.order().reshape(lanes, items)
    dealt = [rows[np.minimum(lane, len(rows) - 1)] for rows in chunks for lane in places]

    def most_of(values: Sequence[int]) -> int:
        return in_grains(max(int(np.asarray(values)[lane].sum()) for lane in dealt))

    # The first item of a group is its longest.
    widths = tuple(
        in_grains(max(lengths[int(lane[group[0]])] for lane in dealt)) for group in layout.groups()
    )
    positions = 0 if scored is None else most_of(scored)
    layout = Packed(lanes, items, widths, most_of(lengths), positions)
    for rows in chunks:
        yield Chunk(rows, layout)
