"""Padded batches of token ids, bucketed by length."""

from collections.abc import Iterator, Sequence

import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from smda_jax.data.chat import LossScope, PairTokens, PromptTokens
from smda_jax.data.targets import Targets


@struct.dataclass
class PromptBatch:
    """Prompts, each with the histories of the target sequences appended: `rows` = prompt x history.

    Attributes:
        tokens: padded on the right; the first `shared` columns are the same in every row.
        eot: the user turn's last end-of-turn token.
        answer: positions whose next token the target sequences are read from.
        shared: how many leading tokens all prompts of the run have in common (the chat header).
    """

    tokens: Int[Array | np.ndarray, "row token"]
    eot: Int[Array | np.ndarray, " row"]
    answer: Int[Array | np.ndarray, "row position"]
    shared: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class PairBatch:
    """Training pairs.

    Attributes:
        tokens: padded on the right.
        at: positions whose next token is scored, padded with zeros.
        target: that next token.
        weight: 1 / (number of scored tokens of the pair), zero at padding.
    """

    tokens: Int[Array | np.ndarray, "pair token"]
    at: Int[Array | np.ndarray, "pair position"]
    target: Int[Array | np.ndarray, "pair position"]
    weight: Float[Array | np.ndarray, "pair position"]


def padded_length(length: int) -> int:
    """The bucket of a length: a multiple of a quarter of its power of two, at least of eight (under 25 % padding)."""
    step = max(8, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step


def shared_length(prompts: Sequence[PromptTokens]) -> int:
    """How many leading tokens all prompts have in common, at most up to the first end of turn that is read."""
    first, last = min(p.ids for p in prompts), max(p.ids for p in prompts)
    limit = min(p.eot for p in prompts)
    return next((i for i, (a, b) in enumerate(zip(first[:limit], last[:limit], strict=False)) if a != b), limit)


def blocks_by_length(lengths: Sequence[int], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(rows, padded length) of blocks of at most `size` items of one bucket; a pure function of the lengths."""
    padded = np.array([padded_length(n) for n in lengths])
    order = np.lexsort((np.arange(len(padded)), padded))
    for bucket in np.unique(padded):
        own = order[padded[order] == bucket]
        for start in range(0, len(own), size):
            yield own[start : start + size], int(bucket)


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
    return PromptBatch(tokens, eot, answer, shared)


def scored_positions(pair: PairTokens, scope: LossScope) -> np.ndarray:
    """Positions whose next token the loss scores: those before the response's tokens, or before every token."""
    first = pair.response if scope == "response" else 1
    return np.arange(first - 1, len(pair.ids) - 1)


def pair_batch(pairs: Sequence[PairTokens], scope: LossScope, width: int, rows: int) -> PairBatch:
    """A batch of `rows` pairs; where fewer are given the last is repeated, so that the compiled shape stays the same."""
    filled = [*pairs, *[pairs[-1]] * (rows - len(pairs))]
    positions = [scored_positions(p, scope) for p in filled]
    most = padded_length(max(map(len, positions)))
    tokens = np.zeros((rows, width), np.int32)
    at, target, weight = (np.zeros((rows, most), t) for t in (np.int32, np.int32, np.float64))
    for i, (pair, own) in enumerate(zip(filled, positions, strict=True)):
        ids = np.array(pair.ids)
        tokens[i, : len(ids)] = ids
        at[i, : len(own)] = own
        target[i, : len(own)] = ids[own + 1]
        weight[i, : len(own)] = 1 / len(own)
    return PairBatch(tokens, at, target, weight)
