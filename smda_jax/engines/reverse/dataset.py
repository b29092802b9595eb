"""Engine `reverse` over a data set: batches of readouts go down the layers together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smda_jax.data.batch.chunks import Chunk, padded_chunks
from smda_jax.data.batch.layouts import Padded
from smda_jax.data.batch.widths import padded_length
from smda_jax.engines.contract import Delta
from smda_jax.engines.push import batch_of
from smda_jax.engines.reverse.program import (
    MATRICES_OF_PAIRS,
    START_OF_STREAM,
    Matrices,
    Pulled,
    Reads,
    Start,
    matrices,
    pull_embedding,
    pull_layer,
    start_h,
    start_y,
)
from smda_jax.engines.reverse.slots import Room, prompts_at_a_time, readout_slots
from smda_jax.model.params import Layer
from smda_jax.reading.evaluation import Evaluation
from smda_jax.reading.network import Progress, silent
from smda_jax.runtime.devices import Replicated, devices, fetch
from smda_jax.runtime.memory import for_each, halving, memory_limit
from smda_jax.runtime.precision import numerics
from smda_jax.runtime.programs import jit, padding_budget
from smda_jax.sae.encoder import pre_activation
from smda_jax.steps.checkpoints import Asked, KeptOfLayer, StepCheckpoints


def reverse(
    evaluation: Evaluation,
    steps: StepCheckpoints | Sequence[StepCheckpoints],
    *,
    prompts: Int[np.ndarray, " prompt"] | None = None,
    batch_size: int = 512,
    inactive: bool = False,
    progress: Progress = silent,
) -> Delta:
    """First-order change of X and Y under each pair's step (engine `reverse`).

    Args:
        evaluation: from `activations`.
        steps: from `pair_steps`, or groups of pairs (`steps_in_groups`), whose pairs then follow
            each other.
        prompts: default all.
        batch_size: readouts that are pulled back at a time.
        inactive: of z also where a feature is not active; NaN there otherwise.
        progress: told the share of the work just done.
    """
    e = evaluation
    groups = (steps,) if isinstance(steps, StepCheckpoints) else tuple(steps)
    pairs = sum(group.pairs for group in groups)
    chosen = np.arange(len(e.tokens)) if prompts is None else prompts
    wanted = np.ones_like(e.active[chosen]) if inactive else e.active[chosen]
    dz = np.full((pairs, *wanted.shape), np.nan, e.h.dtype)
    dy = np.zeros((pairs, len(chosen)), e.h.dtype)
    with numerics(e.model.dtype):
        lengths, counts = [len(e.tokens[i].ids) for i in chosen.tolist()], wanted.sum(axis=1)
        room = Room(pairs, groups[0].embed.dtype.itemsize, memory_limit())
        most = prompts_at_a_time(e.model.config, e.site.layer, max(lengths), counts, room)
        for part in np.array_split(np.arange(len(chosen)), -(-len(chosen) // most)):
            share = len(part) / len(chosen)

            def go_down(size: int, part: np.ndarray = part, share: float = share) -> int:
                def tell(done: float) -> None:
                    progress(done * share)

                descent = _Descent(e, groups, chosen[part], wanted[part], size)
                descent.run(tell)
                dz[:, part], dy[:, part] = descent.dz, descent.dy
                return size

            batch_size = halving(go_down, batch_size)
    active = e.active[chosen][None]
    return Delta(dz, np.where(active, dz, np.zeros_like(dz)), dy)


@dataclass
class _Batch:
    """A batch of readouts on its way down, and where its results belong.

    Attributes:
        tokens: of its prompts.
        start: where it is.
        put: takes its results.
        stream: that readouts look at on the way.
        layer: at which they do.
        reads: how.
    """

    tokens: np.ndarray
    start: Start
    put: Callable[[np.ndarray], None]
    stream: str = "resid_post"
    layer: int = -1
    reads: Reads | None = None


@dataclass
class _Descent:
    """Some prompts whose readouts go down the layers together, under steps that are formed once."""

    e: Evaluation
    groups: tuple[StepCheckpoints, ...]
    rows: np.ndarray
    wanted: np.ndarray
    batch_size: int
    batches: list[_Batch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pairs = sum(group.pairs for group in self.groups)
        dtype = self.e.h.dtype
        self.dz = np.full((self.pairs, *self.wanted.shape), np.nan, dtype)
        self.dy = np.zeros((self.pairs, len(self.rows)), dtype)

    def run(self, progress: Progress) -> None:
        """Fills in `dz` and `dy`."""
        e, config = self.e, self.e.model.config
        lengths = [len(e.tokens[i].ids) for i in self.rows.tolist()]
        slots = readout_slots(self.wanted, self.pairs, max(lengths))
        # A readout goes back through the model, and meets every pair's step; its prompt has gone
        # forwards.
        budget = padding_budget(config.flop_per_token, 4 + self.pairs / 8)
        split = partial(padded_chunks, padding_budget=budget)
        if e.behaviour.moves:
            whole = [e.tokens[i].length for i in self.rows.tolist()]
            for_each(whole, self.batch_size, split, self._add_y)
        if len(slots.prompt):
            size = slots.feature.shape[1]
            ends = np.array([e.tokens[i].read_at + 1 for i in self.rows.tolist()])
            split = partial(padded_chunks, padding_budget=budget / size)
            most = max(1, self.batch_size // size)
            for_each(ends[slots.prompt].tolist(), most, split, partial(self._add_h, slots))
        deepest = max((batch.start.stream.shape[0] for batch in self.batches), default=0)
        moved = self.groups[0].update.moved
        lowest = 0 if moved is None else moved.lowest  # below it nothing more is changed
        visits = sum(max(0, batch.start.stream.shape[0] - lowest) for batch in self.batches)
        for index in reversed(range(lowest, deepest)):
            layer = e.model.params.layer(index)
            formed = self._form(index, layer)
            for batch in self.batches:
                if index < batch.start.stream.shape[0]:
                    self._pull(batch, index, layer, formed)
                    progress(1 / visits)
        for batch in self.batches:
            start, tokens = batch.start, batch.tokens
            args = (self.groups, tokens, _seen(tokens), start.g, start.total)
            batch.put(fetch(pull_embedding.run(*args)).astype(e.h.dtype))

    def _add_y(self, chunk: Chunk) -> None:
        """Starts the readouts of Y of some prompts."""
        e, spot = self.e, self.e.behaviour.spot
        batch, _ = batch_of(e, self.rows[chunk.rows], chunk, shared=0)
        begin = start_y if spot is None else start_y.placed(start_y.args, START_OF_STREAM)
        params = e.params
        if spot is not None and not batch.answers.shape[1]:
            params = e.model.params.up_to(spot.layer)
        start = begin.run(params, self.groups, batch, behaviour=e.behaviour)

        def put(total: np.ndarray) -> None:
            of_prompts = total[:, :, 0].reshape(self.pairs, -1, batch.copies).sum(axis=2)
            self.dy[:, chunk.rows] = of_prompts[:, : len(chunk.rows)]

        own = _Batch(np.asarray(batch.tokens), start, put)
        if spot is not None:
            assert start.at_spot is not None
            at = batch.last if spot.token == "last" else batch.read_at
            # Above the spot the readouts may come down from the head, and below both meet.
            alone = not batch.answers.shape[1]
            reads = Reads(np.asarray(at)[:, 0], start.at_spot, alone)
            own = replace(own, stream=spot.stream, layer=spot.layer, reads=reads)
        self.batches.append(own)

    def _add_h(self, slots: Any, chunk: Chunk) -> None:
        """Starts the readouts of features of some slots."""
        assert isinstance(chunk.layout, Padded)
        e, some = self.e, chunk.rows
        size = devices().round_up(chunk.layout.size)
        filled = np.pad(some, (0, size - len(some)), "edge")
        rows = self.rows[slots.prompt[filled]]
        tokens = np.zeros((size, chunk.layout.width), np.int32)
        for i, n in enumerate(rows.tolist()):
            ids = e.tokens[n].ids[: chunk.layout.width]
            tokens[i, : len(ids)] = ids
        at = np.array([e.tokens[n].read_at for n in rows.tolist()], np.int32)
        with numerics(e.h.dtype):
            chosen = jnp.asarray(slots.feature[filled])
            direction = _directions(e.encoder, jnp.asarray(e.h[rows]), chosen)
        shape = {"pairs": self.pairs, "readouts": slots.feature.shape[1]}
        start = start_h.run(e.model.params.up_to(e.site.layer), tokens, **shape)
        prompt, feature, real = slots.prompt[some], slots.feature[some], slots.real[some]

        def put(total: np.ndarray) -> None:
            where = np.repeat(prompt, feature.shape[1])[real.ravel()]
            self.dz[:, where, feature[real]] = total[:, : len(some)][:, real]

        reads = Reads(at, direction.astype(e.model.dtype))
        site = {"stream": e.site.stream, "layer": e.site.layer}
        self.batches.append(_Batch(tokens, start, put, **site, reads=reads))

    def _form(self, index: int, layer: Layer) -> Matrices:
        """The steps of all pairs in a layer."""
        config, update = self.e.model.config, self.groups[0].update
        parts = jax.tree.map(lambda leaf: leaf[index], update.blocks())
        masks = jax.tree.map(lambda leaf: leaf[index], update.masks())
        kept = tuple(
            KeptOfLayer(g.stream[index], g.delta[index], parts, masks) for g in self.groups
        )
        names = None if update.moved is None else update.moved.names(index)
        asked = Asked(names, self.groups[0].rows)
        # Each device forms its own pairs' steps, where they can be shared out.
        shared_out = self.pairs % devices().round_up(1) == 0
        shared_out &= len(self.groups) == 1 or not devices().several
        rows = matrices.args[1]
        placement = KeptOfLayer(rows, rows, Replicated(), Replicated())  # type: ignore[arg-type]
        placements = (Replicated(), (placement,) * len(kept), Replicated())
        form = matrices.placed(placements, MATRICES_OF_PAIRS)
        if not shared_out:
            form = matrices.placed((Replicated(),) * 3, Replicated())
        return form.run(layer, kept, update, config=config, asked=asked)

    def _pull(self, batch: _Batch, index: int, layer: Layer, formed: Matrices) -> None:
        """Takes a batch of readouts one layer down."""
        config, start = self.e.model.config, batch.start
        reads = batch.reads if index == batch.layer else None
        pulled = Pulled(start.stream[index], start.g, start.total, reads)
        rows = pull_layer.args[1]
        rows = rows.replace(reads=reads and rows.reads.replace(alone=reads.alone))
        pull = pull_layer.placed((Replicated(), rows, Replicated()), pull_layer.result)
        g, total = pull.run(layer, pulled, formed, config=config, stream=batch.stream)
        batch.start = Start(start.stream[:index], g, total)


def _seen(tokens: Int[np.ndarray, "row token"]) -> Int[np.ndarray, " kind"]:
    """The token ids that occur, ascending; the last repeated, so that few lengths are compiled."""
    ids = np.unique(tokens)
    return np.pad(ids, (0, padded_length(len(ids)) - len(ids)), "edge").astype(np.int32)


@jit
def _directions(
    encoder: Any, h: Float[Array, "slot hidden"], feature: Int[Array, "slot readout"]
) -> Float[Array, "readout slot hidden"]:
    """∂z[slot, feature]/∂h."""
    z, pull = jax.vjp(partial(pre_activation, encoder), h)
    asked = jax.nn.one_hot(feature.T, z.shape[1], dtype=z.dtype)
    return jax.vmap(lambda one: pull(one)[0])(asked)
