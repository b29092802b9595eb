"""Batches of token ids without padding: items of different lengths one behind the other in lanes."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from smda_jax.data.batches import GRAIN, PairBatch, PromptBatch, scored_positions
from smda_jax.data.chat import LossScope, PairTokens, PromptTokens
from smda_jax.data.targets import Targets

GROUPS = 4  # of a lane's rows, each padded for attention to a width of its own


class LaneShape(NamedTuple):
    """Compiled shape of packed items.

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

    def groups(self) -> list[np.ndarray]:
        """Which items of a lane are in each group."""
        return np.array_split(np.arange(self.items), len(self.widths))

    def laid(self) -> Int[np.ndarray, " place"]:
        """The item at each place, lane after lane: they are dealt out in turn."""
        return np.arange(self.lanes * self.items).reshape(self.items, self.lanes).T.ravel()

    def deal(self, items: Sequence[Any]) -> list[list[Any]]:
        """The items of each lane; the last is repeated where there are too few."""
        filled = [*items, *[items[-1]] * (self.lanes * self.items - len(items))]
        return [filled[lane :: self.lanes] for lane in range(self.lanes)]


class LaneBlock(NamedTuple):
    """Items to be packed, the longest first, and the shape that all blocks of a data set have in common."""

    rows: Int[np.ndarray, " row"]
    shape: LaneShape


def packed_blocks(
    lengths: Sequence[int], most: int, lanes: int = 1, scored: Sequence[int] | None = None
) -> Iterator[LaneBlock]:
    """Blocks of at most `most` items, all with the same mix of lengths; a pure function of its arguments.

    As every block has its share of the long and of the short, one compiled shape serves all, with hardly a token of padding.
    `scored` are the scored positions of each item.
    """
    count = -(-len(lengths) // most)
    order = np.argsort(-np.asarray(lengths), kind="stable")
    blocks = [order[i::count] for i in range(count)]
    items = -(-len(blocks[0]) // lanes)
    shape = LaneShape(lanes, items, (0,) * min(GROUPS, items), 0)
    dealt = [np.asarray(lane) for rows in blocks for lane in shape.deal(rows.tolist())]

    def most_of(values: Sequence[int]) -> int:
        return _in_grains(max(int(np.asarray(values)[lane].sum()) for lane in dealt))

    # The first item of a group is its longest.
    widths = tuple(_in_grains(max(lengths[int(lane[group[0]])] for lane in dealt)) for group in shape.groups())
    shape = shape._replace(widths=widths, tokens=most_of(lengths), positions=0 if scored is None else most_of(scored))
    for rows in blocks:
        yield LaneBlock(rows, shape)


def _in_grains(n: int) -> int:
    return -(-n // GRAIN) * GRAIN


class _Lanes(NamedTuple):
    """Rows laid out in lanes; `start` is the place in its lane of what a row has beyond the shared tokens, less these."""

    tokens: Int[np.ndarray, "lane token"]
    start: Int[np.ndarray, "lane row"]
    unpack: tuple[Int[np.ndarray, "lane row width"], ...]
    pack: Int[np.ndarray, "lane place"]


def _lay(rows: list[list[Sequence[int]]], shape: LaneShape, copies: int, shared: int) -> _Lanes:
    """Lays out the rows of every lane, `copies` for each item."""
    widths = shape.widths
    sizes = [len(group) * copies for group in shape.groups()]
    tokens = np.zeros((shape.lanes, shared + shape.tokens * copies), np.int32)
    start = np.zeros((shape.lanes, shape.items * copies), np.int32)
    unpack = tuple(np.zeros((shape.lanes, n, width), np.int32) for n, width in zip(sizes, widths, strict=True))
    pack = np.zeros((shape.lanes, shape.tokens * copies), np.int32)
    group, first = np.repeat(np.arange(len(sizes)), sizes), np.cumsum([0, *sizes])
    before = np.cumsum([0, *(n * width for n, width in zip(sizes, widths, strict=True))])
    for lane, own in enumerate(rows):
        tokens[lane, :shared] = own[0][:shared]
        place = 0
        for row, ids in enumerate(own):
            n, g = len(ids) - shared, group[row]
            tokens[lane, shared + place : shared + place + n] = ids[shared:]
            start[lane, row] = place
            unpack[g][lane, row - first[g]] = place + np.minimum(np.arange(widths[g]), n - 1)
            pack[lane, place : place + n] = before[g] + (row - first[g]) * widths[g] + np.arange(n)
            place += n
    return _Lanes(tokens, start, unpack, pack)


def packed_prompts(prompts: Sequence[PromptTokens], targets: Targets, shape: LaneShape, shared: int) -> PromptBatch:
    """Prompts packed into lanes; `shape` is that of what each has beyond the shared tokens, with the longest history."""
    histories = targets.rows
    dealt = shape.deal(prompts)
    rows: list[list[Sequence[int]]] = [[[*p.ids, *history] for p in lane for history in histories] for lane in dealt]
    laid = _lay(rows, shape, len(histories), shared)
    ends = np.array([[len(p.ids) - 1 for p in lane for _ in histories] for lane in dealt])
    last = np.array([[len(ids) - 1 for ids in lane] for lane in rows])
    eot = np.array([[p.eot for p in lane for _ in histories] for lane in dealt])
    answer = np.minimum(ends[..., None] + np.arange(targets.positions), last[..., None])
    return PromptBatch(laid.tokens, laid.start + eot, laid.start[..., None] + answer, laid.unpack, laid.pack, shared)


def packed_pairs(pairs: Sequence[PairTokens], scope: LossScope, shape: LaneShape, shared: int) -> PairBatch:
    """Training pairs packed into lanes; `shape` is that of what each has beyond the shared tokens."""
    dealt = shape.deal(pairs)
    laid = _lay([[pair.ids for pair in lane] for lane in dealt], shape, 1, shared)
    at, target = (np.zeros((shape.lanes, shape.positions), np.int32) for _ in range(2))
    weight = np.zeros((shape.lanes, shape.items, shape.positions))
    for lane, own in enumerate(dealt):
        place = 0
        for row, pair in enumerate(own):
            scored = scored_positions(pair, scope)
            some = slice(place, place + len(scored))
            at[lane, some] = laid.start[lane, row] + scored
            target[lane, some] = np.array(pair.ids)[scored + 1]
            weight[lane, row, some] = 1 / len(scored)
            place += len(scored)
    return PairBatch(laid.tokens, at, target, weight, laid.unpack, laid.pack, shared)
