"""Batches of token ids, and how they are padded: bucketed by length."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from smda_jax.data.chat import LossScope, PairTokens, PromptTokens
from smda_jax.data.targets import Targets
from smda_jax.pytree import pytree


@pytree
class PromptBatch:
    """Prompts, each with the histories of the target sequences appended: `rows` = prompt x history.

    Padded, a lane is a row; packed, it holds rows one behind the other, all after one copy of the shared tokens, and `eot` and
    `answer` have a lane axis first.

    Attributes:
        tokens: padded on the right; the first `shared` columns are the same in every lane.
        eot: the user turn's last end-of-turn token, by its place in the lane.
        answer: positions whose next token the target sequences are read from, by their places in the lane.
        unpack: see `model.attention.Packing`; empty where rows are padded.
        pack: see there.
        shared: how many leading tokens all prompts of the run have in common (the chat header).
    """

    tokens: Int[Array | np.ndarray, "lane token"]
    eot: Int[Array | np.ndarray, "*lane_row"]
    answer: Int[Array | np.ndarray, "*lane_row position"]
    unpack: tuple[Int[Array | np.ndarray, "lane row width"], ...] = ()
    pack: Int[Array | np.ndarray, "lane place"] | None = None
    shared: int = struct.field(pytree_node=False, default=0)


@pytree
class PairBatch:
    """Training pairs: padded, a lane is a pair; packed, it holds pairs one behind the other after the shared tokens.

    Attributes:
        tokens: padded on the right.
        at: places in the lane whose next token is scored, padded with zeros.
        target: that next token.
        weight: 1 / (number of scored tokens of the pair), zero at padding; packed, for each pair of a lane, and zero at the
            positions of the others.
        unpack: see `model.attention.Packing`; empty where pairs are padded.
        pack: see there.
        shared: how many leading tokens all pairs of the run have in common; 0 where every pair is to run its own.
    """

    tokens: Int[Array | np.ndarray, "lane token"]
    at: Int[Array | np.ndarray, "lane position"]
    target: Int[Array | np.ndarray, "lane position"]
    weight: Float[Array | np.ndarray, "lane *pair position"]
    unpack: tuple[Int[Array | np.ndarray, "lane row width"], ...] = ()
    pack: Int[Array | np.ndarray, "lane place"] | None = None
    shared: int = struct.field(pytree_node=False, default=0)


def padded_length(length: int) -> int:
    """The bucket of a length: a multiple of a quarter of its power of two, at least of eight (under 25 % padding)."""
    step = max(8, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step


def shared_length(prompts: Sequence[PromptTokens]) -> int:
    """How many leading tokens all prompts have in common, at most up to the first end of turn that is read."""
    return _in_common([p.ids for p in prompts], min(p.eot for p in prompts))


def shared_pair_length(pairs: Sequence[PairTokens], scope: LossScope) -> int:
    """How many leading tokens all pairs have in common, at most up to the first position that is scored."""
    return _in_common([p.ids for p in pairs], min(int(scored_positions(p, scope)[0]) for p in pairs))


def _in_common(ids: Sequence[Sequence[int]], most: int) -> int:
    first, last = min(ids, key=list), max(ids, key=list)
    return next((i for i, (a, b) in enumerate(zip(first[:most], last[:most], strict=False)) if a != b), most)


GRAIN = 8  # tokens: widths are multiples of it


def bucket_widths(lengths: Sequence[int], worth: float | int = 0) -> list[int]:
    """The widths that items are padded to, multiples of `GRAIN`: as many as each save `worth` tokens of padding or more.

    Every width is a compilation, every padded token work. A pure function of its arguments.
    """
    widths, count = np.unique(-(-np.asarray(lengths) // GRAIN) * GRAIN, return_counts=True)
    upto = count.cumsum()
    # cost[j] = padded tokens of everything up to width j, by the best choice of so many widths ending in j
    cost = (widths * upto).astype(float)
    own = np.where(np.tri(len(widths), k=-1, dtype=bool), widths[:, None] * (upto[:, None] - upto), np.inf)
    before = [np.full(len(widths), -1)]
    while len(before) < len(widths):
        options = own + cost  # [this width, the one before it]
        best = options.argmin(axis=1)
        if not cost[-1] - options[-1].min() >= max(worth, 1):
            break
        cost = np.take_along_axis(options, best[:, None], axis=1)[:, 0]
        before.append(best)
    chosen, j = [], len(widths) - 1
    for previous in reversed(before):
        chosen.append(int(widths[j]))
        j = previous[j]
    return chosen[::-1]


class LengthBlock(NamedTuple):
    """Items of one bucket, the width they are padded to, and the size that all blocks of the bucket are filled up to."""

    rows: Int[np.ndarray, " row"]
    width: int
    size: int


def blocks_by_length(lengths: Sequence[int], most: int, worth: float | int = 0) -> Iterator[LengthBlock]:
    """Blocks of at most `most` items of one bucket (see `bucket_widths`), of even sizes; a pure function of its arguments."""
    widths = bucket_widths(lengths, worth)
    bucket = np.searchsorted(widths, lengths)
    for index, width in enumerate(widths):
        own = np.flatnonzero(bucket == index)
        size = -(-len(own) // -(-len(own) // most))
        for start in range(0, len(own), size):
            yield LengthBlock(own[start : start + size], width, size)


def prompt_batch(prompts: Sequence[PromptTokens], targets: Targets, width: int, shared: int, rows: int) -> PromptBatch:
    """A batch of `rows` prompts; where fewer are given the last is repeated, so that the compiled shape stays the same."""
    filled = [*prompts, *[prompts[-1]] * (rows - len(prompts))]
    histories, n = targets.rows, len(targets.rows)
    tokens = np.zeros((rows * n, width), np.int32)
    eot, answer = np.zeros(rows * n, np.int32), np.zeros((rows * n, targets.positions), np.int32)
    for i, prompt in enumerate(filled):
        for j, history in enumerate(histories):
            ids = [*prompt.ids, *history]
            tokens[i * n + j, : len(ids)] = ids
            eot[i * n + j] = prompt.eot
            answer[i * n + j] = np.minimum(len(prompt.ids) - 1 + np.arange(targets.positions), len(ids) - 1)
    return PromptBatch(tokens, eot, answer, shared=shared)


def scored_positions(pair: PairTokens, scope: LossScope) -> np.ndarray:
    """Positions whose next token the loss scores: those before the response's tokens, or before every token."""
    first = pair.response if scope == "response" else 1
    return np.arange(first - 1, len(pair.ids) - 1)


def pair_batch(pairs: Sequence[PairTokens], scope: LossScope, width: int, rows: int, most: int = 0) -> PairBatch:
    """A batch of `rows` pairs; where fewer are given the last is repeated, so that the compiled shape stays the same.

    `most` is the least number of scored positions to make room for, for the same reason.
    """
    filled = [*pairs, *[pairs[-1]] * (rows - len(pairs))]
    positions = [scored_positions(p, scope) for p in filled]
    most = padded_length(max(most, *map(len, positions)))
    tokens = np.zeros((rows, width), np.int32)
    at, target, weight = (np.zeros((rows, most), t) for t in (np.int32, np.int32, np.float64))
    for i, (pair, own) in enumerate(zip(filled, positions, strict=True)):
        ids = np.array(pair.ids)
        tokens[i, : len(ids)] = ids
        at[i, : len(own)] = own
        target[i, : len(own)] = ids[own + 1]
        weight[i, : len(own)] = 1 / len(own)
    return PairBatch(tokens, at, target, weight)
