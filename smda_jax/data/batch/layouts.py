"""How the items of a batch lie in its lanes: one to a lane, padded, or several, packed.

A layout knows where every item goes and how rows are put back in order; who uses it need not know
which it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from smda_jax.data.batch.widths import padded_length
from smda_jax.kernels.packing import Packing

GROUPS = 4  # of a lane's rows, each padded for attention to a width of its own


class Laid(NamedTuple):
    """Rows laid out in lanes.

    Attributes:
        tokens: of every lane: the shared tokens once, then what each row has beyond them.
        start: token j of a row, beyond the shared ones, stands at place `start + j` of its lane.
        packing: of rows that are packed; None where a lane is a row.
    """

    tokens: Int[np.ndarray, "lane token"]
    start: Int[np.ndarray, "lane row"]
    packing: Packing | None


@runtime_checkable
class Layout(Protocol):
    """Compiled shape of a batch.

    Attributes:
        slots: places for items; where there are fewer items the last is repeated.
        lanes: of a batch with one row for each item.
    """

    @property
    def slots(self) -> int:
        """See the class."""
        ...

    @property
    def lanes(self) -> int:
        """See the class."""
        ...

    def order(self) -> Int[np.ndarray, " slot"]:
        """The item at each slot, lane after lane."""
        ...

    def lay(self, rows: Sequence[Sequence[int]], shared: int) -> Laid:
        """Lays out rows, given slot after slot, after one copy of the `shared` tokens."""
        ...

    def room(self, scored: Sequence[int]) -> int:
        """Scored positions that a lane has room for, given those of each item."""
        ...


def items_at(layout: Layout, count: int) -> Int[np.ndarray, " slot"]:
    """Which of `count` items is at each slot."""
    return np.minimum(layout.order(), count - 1)


def gather(layout: Layout, values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Items' values → slots' values; zero where a slot repeats an item."""
    count = values.shape[axis]
    padding = [(0, 0)] * values.ndim
    padding[axis] = (0, layout.slots - count)
    return np.take(np.pad(values, padding), layout.order(), axis)


def scatter(layout: Layout, values: np.ndarray, count: int, axis: int = 0) -> np.ndarray:
    """Slots' values → values of the `count` items, in their order."""
    return np.take(values, np.argsort(layout.order())[:count], axis)


@dataclass(frozen=True)
class Padded:
    """Every row is a lane of its own, padded on the right.

    Attributes:
        width: tokens of a row beyond the shared ones.
        size: items of a batch.
        positions: scored positions that a row has room for.
    """

    width: int
    size: int
    positions: int = 0

    @property
    def slots(self) -> int:
        """See `Layout`."""
        return self.size

    @property
    def lanes(self) -> int:
        """See `Layout`."""
        return self.size

    def order(self) -> Int[np.ndarray, " slot"]:
        """See `Layout`."""
        return np.arange(self.size)

    def lay(self, rows: Sequence[Sequence[int]], shared: int) -> Laid:
        """See `Layout`."""
        tokens = np.zeros((len(rows), shared + self.width), np.int32)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
        return Laid(tokens, np.zeros((len(rows), 1), np.int32), None)

    def room(self, scored: Sequence[int]) -> int:
        """See `Layout`."""
        return padded_length(max(self.positions, *scored))


@dataclass(frozen=True)
class Packed:
    """Items lie one behind the other in lanes, without padding.

    Attributes:
        lanes: one for each group of devices.
        items: of a lane.
        widths: that its groups of items are padded to where they attend, the widest first.
        tokens: of a lane.
        positions: of them, scored.
    """

    lanes: int
    items: int
    widths: tuple[int, ...]
    tokens: int
    positions: int = 0

    @property
    def slots(self) -> int:
        """See `Layout`."""
        return self.lanes * self.items

    def groups(self) -> list[np.ndarray]:
        """Which items of a lane are in each group."""
        return np.array_split(np.arange(self.items), len(self.widths))

    def order(self) -> Int[np.ndarray, " slot"]:
        """See `Layout`; items are dealt to the lanes in turn."""
        return np.arange(self.slots).reshape(self.items, self.lanes).T.ravel()

    def lay(self, rows: Sequence[Sequence[int]], shared: int) -> Laid:
        """See `Layout`."""
        copies = len(rows) // self.slots
        per_lane = self.items * copies
        sizes = [len(group) * copies for group in self.groups()]
        tokens = np.zeros((self.lanes, shared + self.tokens * copies), np.int32)
        start = np.zeros((self.lanes, per_lane), np.int32)
        unpack = [
            np.zeros((self.lanes, *s), np.int32) for s in zip(sizes, self.widths, strict=True)
        ]
        pack = np.zeros((self.lanes, self.tokens * copies), np.int32)
        group = np.repeat(np.arange(len(sizes)), sizes)
        first = np.cumsum([0, *sizes])
        padded = (n * width for n, width in zip(sizes, self.widths, strict=True))
        before = np.cumsum([0, *padded])
        for lane in range(self.lanes):
            own, place = rows[lane * per_lane : (lane + 1) * per_lane], 0
            tokens[lane, :shared] = own[0][:shared]
            for row, ids in enumerate(own):
                n, g = len(ids) - shared, group[row]
                inside, width = row - first[g], self.widths[g]
                some = slice(place, place + n)
                tokens[lane, shared + place : shared + place + n] = ids[shared:]
                start[lane, row] = place
                unpack[g][lane, inside] = place + np.minimum(np.arange(width), n - 1)
                pack[lane, some] = before[g] + inside * width + np.arange(n)
                place += n
        return Laid(tokens, start, Packing(tuple(unpack), pack))

    def room(self, scored: Sequence[int]) -> int:
        """See `Layout`; all items of the data set were looked at."""
        return self.positions
