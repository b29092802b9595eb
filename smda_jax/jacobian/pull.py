"""Engine `reverse` over a data set: batches of readouts go down the layers together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smda_jax.data.batches import LengthBlock, blocks_by_length, padded_length, prompt_batch
from smda_jax.jacobian import programs
from smda_jax.jacobian.evaluation import Evaluation, Progress, silent
from smda_jax.jacobian.factors import Factors
from smda_jax.jacobian.passes import Delta
from smda_jax.jacobian.programs import TooLargeError, for_each
from smda_jax.jacobian.reverse import Matrices, Reads, Start, matrices, pull_block, pull_embedding, start_h, start_y
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import up_to
from smda_jax.model.mesh import fetch, is_spread, rows_of
from smda_jax.model.precision import jit, numerics
from smda_jax.sae.encoder import pre_activation

READOUTS = (1, 2, 4, 8, 16, 32)  # pull-backs of one prompt at a time


def reverse(
    evaluation: Evaluation,
    steps: Factors | Sequence[Factors],
    *,
    prompts: Int[np.ndarray, " prompt"] | None = None,
    block: int = 512,
    inactive: bool = False,
    progress: Progress = silent,
) -> Delta:
    """First-order change of X and Y under each pair's step (engine `reverse`).

    Args:
        evaluation: from `activations`.
        steps: from `factors`, or groups of pairs (`passes.in_groups`), whose pairs then follow each other.
        prompts: default all.
        block: readouts that are pulled back at a time.
        inactive: of z also where a feature is not active; NaN there otherwise.
        progress: told the share of the work just done.
    """
    e = evaluation
    groups = (steps,) if isinstance(steps, Factors) else tuple(steps)
    pairs = sum(group.pairs for group in groups)
    chosen = np.arange(len(e.tokens)) if prompts is None else prompts
    wanted = np.ones_like(e.active[chosen]) if inactive else e.active[chosen]
    dz = np.full((pairs, *wanted.shape), np.nan, e.h.dtype)
    dy = np.zeros((pairs, len(chosen)), e.h.dtype)
    with numerics(e.model.dtype):
        width, counts = max(len(e.tokens[i].ids) for i in chosen.tolist()), wanted.sum(axis=1)
        size = groups[0].embed.dtype.itemsize
        at_a_time = prompts_at_a_time(e.model.config, e.site.layer, width, counts, pairs, size, programs.memory_limit())
        for part in np.array_split(np.arange(len(chosen)), -(-len(chosen) // at_a_time)):
            share = len(part) / len(chosen)
            while not _fits(
                lambda part=part, block=block, share=share: _reverse(
                    e, groups, chosen, part, wanted, block, dz, dy, lambda done: progress(done * share)
                ),
                last=block == 1,
            ):
                block = -(-block // 2)
    return Delta(dz, np.where(e.active[chosen][None], dz, np.zeros_like(dz)), dy)


def _fits(call: Callable[[], None], last: bool) -> bool:
    """Whether a call found the memory it needs; raises TooLargeError if it did not and was the `last` to try."""
    try:
        call()
        return True
    except TooLargeError:
        if last:
            raise
    return False


def prompts_at_a_time(
    config: ModelConfig, layer: int, tokens: float | int, counts: np.ndarray, pairs: int, itemsize: int, limit: int
) -> int:
    """How many prompts go down the layers together, their streams and their readouts' gradients in a fifth of `limit`.

    `counts` are the readouts of z of each prompt. Kept are, for Y, every stream and a gradient; for each slot of readouts the
    streams up to `layer` once more, and as many gradients as it has room for.
    """
    size = slot_size(counts, pairs, tokens)
    slots = float(np.ceil(counts / size).mean())
    kept = config.layers + 1 + slots * (layer + 1 + size)
    return max(1, int(0.2 * limit / (kept * tokens * config.hidden * itemsize)))


def slot_size(counts: np.ndarray, pairs: int, tokens: float | int) -> int:
    """How many readouts of one prompt are pulled back together; `counts` are those of each prompt.

    A slot runs its prompt once; a larger one runs prompts less often and is filled less well.
    """
    return min(READOUTS, key=lambda r: np.ceil(counts / r).sum() * (r * (pairs + 2 * tokens) + 2 * tokens))


@dataclass
class _Pull:
    """A batch of readouts on its way down, and where its results belong."""

    tokens: np.ndarray
    start: Start
    put: Callable[[np.ndarray], None]
    reads: Reads | None = None


def _reverse(
    e: Evaluation,
    steps: tuple[Factors, ...],
    chosen: np.ndarray,
    part: np.ndarray,
    wanted: np.ndarray,
    block: int,
    dz: np.ndarray,
    dy: np.ndarray,
    progress: Progress,
) -> None:
    """Fills in the prompts `chosen[part]`: their readouts go down the layers together, whose steps are formed once."""
    config, params, limit = e.model.config, e.model.params, programs.memory_limit()
    histories, width, pairs = len(e.targets.rows), max(map(len, e.targets.rows)), len(dy)
    pulls: list[_Pull] = []

    def add_y(some: LengthBlock) -> None:
        rows, size = part[some.rows], rows_of(some.size)
        batch = prompt_batch([e.tokens[i] for i in chosen[rows].tolist()], e.targets, some.width, 0, size)
        axes = {"axes": (-1, -1, 0), "out": Start(1, 1, 1)}  # type: ignore[arg-type]
        start = programs.run(start_y, config, params, steps, batch, limit=limit, targets=e.targets, **axes)

        def put(total: np.ndarray) -> None:
            dy[:, rows] = total[:, :, 0].reshape(pairs, -1, histories).sum(axis=2)[:, : len(rows)]

        pulls.append(_Pull(np.asarray(batch.tokens), start, put))

    row, feature, real = readout_slots(wanted[part], pairs, max(len(e.tokens[i].ids) for i in chosen[part].tolist()))
    ends = np.array([e.tokens[i].eot + 1 for i in chosen[part].tolist()])
    below = up_to(params, e.site.layer)

    def add_h(some: LengthBlock) -> None:
        slots, size = some.rows, rows_of(some.size)
        filled = np.pad(slots, (0, size - len(slots)), "edge")
        own = chosen[part[row[filled]]]
        tokens = np.zeros((size, some.width), np.int32)
        for i, n in enumerate(own.tolist()):
            ids = e.tokens[n].ids[: some.width]
            tokens[i, : len(ids)] = ids
        eot = np.array([e.tokens[n].eot for n in own.tolist()], np.int32)
        with numerics(e.h.dtype):
            direction = _directions(e.encoder, jnp.asarray(e.h[own]), jnp.asarray(feature[filled]))
        axes = {"axes": (-1, 0), "out": Start(1, 1, 1)}  # type: ignore[arg-type]
        static = {"pairs": pairs, "readouts": feature.shape[1]}
        start = programs.run(start_h, config, below, tokens, limit=limit, **axes, **static)
        at, k, use = part[row[slots]], feature[slots], real[slots]

        def put(total: np.ndarray) -> None:
            dz[:, np.repeat(at, k.shape[1])[use.ravel()], k[use]] = total[:, : len(slots)][:, use]

        pulls.append(_Pull(tokens, start, put, Reads(eot, direction.astype(e.model.dtype))))

    # A readout goes back through the model, and meets every pair's step; its prompt has gone forwards.
    worth = programs.worth(config, 4 + pairs / 8)
    split = partial(blocks_by_length, worth=worth)
    for_each([len(e.tokens[i].ids) + width for i in chosen[part].tolist()], block, split, add_y)
    if len(row):
        split = partial(blocks_by_length, worth=worth / feature.shape[1])
        for_each(ends[row].tolist(), max(1, block // feature.shape[1]), split, add_h)
    scaling = None if steps[0].scaling is None else steps[0].scaling.blocks
    kept = tuple(group.stream for group in steps), tuple(group.delta for group in steps)
    visits = sum(pull.start.stream.shape[0] for pull in pulls)
    for layer in reversed(range(config.layers)):
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], (params.blocks, *kept, scaling))
        even = pairs % rows_of(1) == 0 and (
            len(steps) == 1 or not is_spread()
        )  # each device forms its own pairs' steps, where they can be shared out
        out = Matrices(2, 1, 1) if even else Matrices(-1, -1, -1)  # type: ignore[arg-type]
        axes = {"axes": (-1, 0, 0, -1) if even else (-1, -1, -1, -1), "out": out}
        formed = programs.run(matrices, config, *own, limit=limit, **axes)
        for pull in pulls:
            if layer >= pull.start.stream.shape[0]:
                continue
            reads = pull.reads if layer == e.site.layer else None
            args = (own[0], pull.start.stream[layer], pull.start.g, pull.start.total, formed, reads)
            axes = {"axes": (-1, 0, 1, 1, -1, Reads(0, 1) if reads else -1), "out": (1, 1)}  # type: ignore[arg-type]
            g, total = programs.run(pull_block, config, *args, limit=limit, stream=e.site.stream, **axes)
            pull.start = Start(pull.start.stream[:layer], g, total)
            progress(1 / visits)
    for pull in pulls:
        args = (steps, pull.tokens, _seen(pull.tokens), pull.start.g, pull.start.total)
        axes = {"axes": (-1, 0, -1, 1, 1), "out": 1}
        pull.put(fetch(programs.run(pull_embedding, config, *args, limit=limit, **axes)).astype(e.h.dtype))


def _seen(tokens: Int[np.ndarray, "row token"]) -> Int[np.ndarray, " kind"]:
    """The token ids that occur, ascending; the last repeated, so that few lengths are compiled."""
    ids = np.unique(tokens)
    return np.pad(ids, (0, padded_length(len(ids)) - len(ids)), "edge").astype(np.int32)


def readout_slots(
    wanted: np.ndarray, pairs: int, tokens: int
) -> tuple[Int[np.ndarray, " slot"], Int[np.ndarray, "slot readout"], np.ndarray]:
    """Groups each prompt's wanted readouts into slots of one size → (prompt, features, which of them are real)."""
    size = slot_size(wanted.sum(axis=1), pairs, tokens)
    row, feature, real = [], [], []
    for n, own in enumerate(wanted):
        k = np.flatnonzero(own)
        for start in range(0, len(k), size):
            part = k[start : start + size]
            row.append(n)
            feature.append(np.pad(part, (0, size - len(part)), "edge"))
            real.append(np.arange(size) < len(part))
    if not row:
        return np.zeros(0, int), np.zeros((0, size), int), np.zeros((0, size), bool)
    return np.array(row), np.array(feature), np.array(real)


@jit
def _directions(encoder: Any, h: Float[Array, "slot hidden"], feature: Int[Array, "slot readout"]) -> Array:
    """∂z[slot, feature]/∂h → [readout, slot, hidden]."""
    z, pull = jax.vjp(partial(pre_activation, encoder), h)
    asked = jax.nn.one_hot(feature.T, z.shape[1], dtype=z.dtype)
    return jax.vmap(lambda one: pull(one)[0])(asked)
