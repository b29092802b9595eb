"""The pair blocks of a run: computed once, kept on disk in parts, read one at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from smda_jax.data.batches import LengthBlock, blocks_by_length, scored_positions, shared_pair_length
from smda_jax.data.lanes import LaneBlock
from smda_jax.errors import InputError
from smda_jax.jacobian import ask, passes, programs, pull
from smda_jax.jacobian.evaluation import Evaluation
from smda_jax.jacobian.factors import Factors, PairStatistics
from smda_jax.jacobian.passes import Delta, Update
from smda_jax.jacobian.plan import Plan
from smda_jax.jacobian.programs import TooLargeError
from smda_jax.jacobian.query import Query
from smda_jax.jacobian.rule import finite_by_rule
from smda_jax.model.mesh import fetch
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs import Inputs
from smda_jax.runs.questions import Questions
from smda_jax.runs.store import RunFolder

PART_SECONDS = 60  # of work that a kill may lose, by estimate


@dataclass(frozen=True)
class Blocks:
    """Blocks of pairs of about the same length.

    Every block is kept in parts that say themselves what they hold: some of the prompts, or some of the functionals.
    """

    config: Attribute
    inputs: Inputs
    evaluation: Evaluation
    run: RunFolder
    plan: Plan
    update: Update
    questions: Questions
    seconds: float
    rule: optax.GradientTransformation | None = None

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, pair rows) of every block; a pure function of the plan and the pairs' lengths."""
        for index, part in enumerate(self._blocks):
            yield f"pairs-{index:06d}", part.rows

    @cached_property
    def _blocks(self) -> list[LengthBlock] | list[LaneBlock]:
        lengths, most = [len(t.ids) for t in self.inputs.pair_tokens], self.plan.pair_block
        worth = programs.worth(self.inputs.model.config, 3)
        # A normalised step needs the gradients' norms, so that they are formed.
        if self.plan.engine == "query" and self.plan.keep == "score" and not self.update.normalised:
            return ask.pair_blocks(self.inputs.pair_tokens, most, self.config.loss_scope, self._shared)
        # Reverse pulls every prompt back once per block, and groups the pairs in a block by length itself.
        return list(blocks_by_length(lengths, most, np.inf if self.plan.engine == "reverse" else worth))

    @cached_property
    def _scored(self) -> dict[int, int]:
        """Most scored positions of each width of pairs: what every block of the width makes room for."""
        most: dict[int, int] = {}
        for block in self._blocks:
            assert isinstance(block, LengthBlock)
            own = [len(scored_positions(self.inputs.pair_tokens[i], self.config.loss_scope)) for i in block.rows]
            most[block.width] = max(most.get(block.width, 0), *own)
        return most

    @cached_property
    def _shared(self) -> int:
        return shared_pair_length(self.inputs.pair_tokens, self.config.loss_scope)

    def compute(self, console: Console) -> None:
        """Computes what is missing, part by part.

        Raises:
            InputError: a loss, gradient or change is not finite.
            TooLargeError: a block of one does not fit into memory.
        """
        done = {name: self._done(name, rows) for name, rows in self}
        share = {name: len(rows) / len(self.inputs.pairs) for name, rows in self}
        finished = sum(share[name] * len(done[name]) / self._items for name in share)
        if 0 < finished < 1 - 1e-9:
            console.print(f"continuing: {finished:.0%} of the work is done")
        columns = (
            TextColumn("pairs"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(True),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("pairs", total=1.0)
            bar.advance(task, finished)
            visit = self._answer if self.plan.engine == "query" else self._push
            visit(done, lambda share: bar.advance(task, share))

    @property
    def _items(self) -> int:
        """How many prompts, or functionals, a complete block holds."""
        return self.questions.count if self.plan.engine == "query" else len(self.evaluation.tokens)

    def _done(self, name: str, rows: np.ndarray) -> set[int]:
        """Prompts, or functionals, that a block is finished with.

        Raises:
            InputError: a part holds other pairs than the block.
        """
        key, done = "functional" if self.plan.engine == "query" else "prompt", set()
        for part in self.run.parts(name):
            found = self.run.load(part, only=(key, "pair"))
            if not np.array_equal(found["pair"], rows):
                where = self.run.path / "jacobian" / part
                raise InputError(
                    where, "holds other pairs than this version would put there", "another --out, or delete jacobian"
                )
            done |= set(found[key].tolist())
        return done

    def _push(self, done: dict[str, set[int]], advance: Callable[[float], None]) -> None:
        """Engines that give changes prompt by prompt."""
        prompts = len(self.evaluation.tokens)
        for (name, rows), block in zip(self, self._blocks, strict=True):
            missing = np.setdiff1d(np.arange(prompts), list(done[name]))
            if not len(missing):
                continue
            assert isinstance(block, LengthBlock)
            share = len(rows) / len(self.inputs.pairs)
            steps, statistics, back = self._factors(block)
            estimate = self.seconds * share * len(missing) / prompts
            parts = int(max(1, min(estimate / PART_SECONDS, len(missing) / max(self.plan.block, 1))))
            # Prompts of like length together, so that every part has few widths.
            order = missing[np.argsort([len(self.evaluation.tokens[i].ids) for i in missing], kind="stable")]
            for some in np.array_split(order, parts):
                some = np.sort(some)
                weight = share * len(some) / prompts
                delta = self._engine(block, steps, back, some, lambda done, weight=weight: advance(done * weight))
                self._save(name, rows, statistics, some, delta)

    def _save(self, name: str, rows: np.ndarray, statistics: PairStatistics, prompts: np.ndarray, delta: Delta) -> None:
        dx = delta.z if self.config.gate == "off" else delta.x
        fine = np.array([bool(np.isfinite(a).all() and np.isfinite(b).all()) for a, b in zip(dx, delta.y, strict=True)])
        self._refuse(rows, fine, "the step on it")
        # What is kept is what was asked for, whichever engine found more.
        hide = self.plan.keep == "active" and self.config.gate == "on"
        dz = np.where(self.evaluation.active[prompts][None], delta.z, np.nan) if hide else delta.z
        out = {"pair": rows, "prompt": prompts, **statistics._asdict(), "delta_z": dz.astype(delta.z.dtype), "delta_y": delta.y}
        if self.plan.engine == "finite":  # first-order ΔX is the gate times ΔZ; a true step may also open and close gates
            out["delta_x"] = delta.x
        if delta.h is not None:
            out["delta_h"] = delta.h
        self.run.save_part(name, out)

    def _factors(self, block: LengthBlock) -> tuple[Factors | tuple[Factors, ...], PairStatistics, np.ndarray]:
        """Steps of a block of pairs, their statistics, and which rows of what an engine makes of them are the block's."""
        rows, width, size = block
        tokens, scope = [self.inputs.pair_tokens[i] for i in rows], self.config.loss_scope
        shape = {"width": width, "rows": size, "positions": self._scored[width]}
        if self.plan.engine == "reverse":
            steps, found, back = passes.in_groups(self.inputs.model, tokens, self.update, scope)
        else:
            steps, found = passes.factors_of(self.inputs.model, tokens, self.update, scope, **shape)
            back = np.arange(len(rows))
        statistics = PairStatistics(*(fetch(v).astype(np.float64)[back] for v in found))
        self._refuse(rows, np.isfinite(statistics.loss) & np.isfinite(statistics.gradient_norm), "its loss or gradient")
        return steps, statistics, back

    def _engine(
        self,
        block: LengthBlock,
        steps: Factors | tuple[Factors, ...],
        back: np.ndarray,
        prompts: np.ndarray,
        progress: Callable[[float], None],
    ) -> Delta:
        """The engine on a block of pairs; where the block itself is too large for memory, on its halves."""
        e, engine, size = self.evaluation, self.plan.engine, self.plan.block
        try:
            if self.rule is not None:
                tokens = [self.inputs.pair_tokens[i] for i in block.rows]
                return finite_by_rule(e, tokens, self.rule, None, self.config.loss_scope, prompts=prompts, progress=progress)
            if engine == "reverse":
                # Without the gate every row is read, be it kept or not.
                inactive = self.plan.keep == "features" or self.config.gate == "off"
                out = pull.reverse(e, steps, prompts=prompts, block=size, inactive=inactive, progress=progress)
            else:
                assert isinstance(steps, Factors)
                push = passes.finite if engine == "finite" else passes.forward
                residual = self.plan.keep == "residual"
                out = push(e, steps, prompts=prompts, block=size, residual=residual, progress=progress)
            return Delta(*(None if v is None else v[back] for v in out))  # type: ignore[arg-type]
        except TooLargeError:
            if block.size == 1 or self.rule is not None:
                raise
        # Out of the handler, which would hold on to the arrays of what failed.
        del steps
        half, halves = -(-block.size // 2), []
        for start in range(0, len(block.rows), half):
            part = LengthBlock(block.rows[start : start + half], block.width, half)
            own, _, back = self._factors(part)
            halves.append(self._engine(part, own, back, prompts, lambda done: progress(done / 2)))
        return Delta(*(None if v[0] is None else np.concatenate(v) for v in zip(*halves, strict=True)))  # type: ignore[arg-type]

    def _answer(self, done: dict[str, set[int]], advance: Callable[[float], None]) -> None:
        """Engine query: functionals, a group at a time, against all pairs."""
        f = self.questions
        missing = [i for i in range(f.count) if any(i not in own for own in done.values())]
        for start in range(0, len(missing), f.at_a_time):
            ids = missing[start : start + f.at_a_time]
            queries = f.pull(self.evaluation, ids, self.update.scaling, self.plan.block)
            for (name, rows), block in zip(self, self._blocks, strict=True):
                if set(ids) <= done[name]:
                    continue
                values, statistics = self._ask(block, queries)
                fine = np.isfinite(values).all(axis=0) & np.isfinite(statistics.loss)
                self._refuse(rows, fine, "its loss, gradient or step")
                self.run.save_part(
                    name,
                    {"pair": rows, **statistics._asdict(), "functional": np.array(ids), "value": values},
                )
                advance(len(rows) / len(self.inputs.pairs) * len(ids) / f.count)

    def _ask(self, block: LengthBlock | LaneBlock, queries: tuple[Query, ...]) -> tuple[np.ndarray, PairStatistics]:
        """Every functional's change under each pair of a block; where it is too large for memory, by halves."""
        model, scope = self.inputs.model, self.config.loss_scope
        tokens = [self.inputs.pair_tokens[i] for i in block.rows]
        try:
            if isinstance(block, LaneBlock):
                how = {"shape": block.shape, "shared": self._shared}
                found = [ask.along(model, tokens, q, self.update.learning_rate, scope, **how) for q in queries]
                values, statistics = [v for v, _ in found], found[0][1]
            else:
                shape = {"width": block.width, "rows": block.size, "positions": self._scored[block.width]}
                values, statistics = ask.answer(model, tokens, queries, self.update, scope, **shape)
            statistics = PairStatistics(*(v.astype(np.float64) for v in statistics))
            return np.concatenate(values).astype(np.float64), statistics
        except TooLargeError:
            if len(tokens) == 1:
                raise
        half = -(-len(tokens) // 2)
        parts = [self._ask(self._part(block, some), queries) for some in (block.rows[:half], block.rows[half:])]
        statistics = PairStatistics(*(np.concatenate(v) for v in zip(*(s for _, s in parts), strict=True)))
        return np.concatenate([v for v, _ in parts], axis=1), statistics

    def _part(self, block: LengthBlock | LaneBlock, rows: np.ndarray) -> LengthBlock | LaneBlock:
        """Some pairs of a block as a block of their own."""
        if isinstance(block, LengthBlock):
            return block._replace(rows=rows, size=-(-block.size // 2))
        tokens = [self.inputs.pair_tokens[i] for i in rows]
        (own,) = ask.pair_blocks(tokens, len(rows), self.config.loss_scope, self._shared)
        return own._replace(rows=rows[own.rows])

    def _refuse(self, rows: np.ndarray, fine: np.ndarray, what: str) -> None:
        if not fine.all():
            row = int(rows[int(np.argmin(fine))])
            where = f"{self.inputs.pairs.where(row)} (pair {self.inputs.pairs.ids[row][:12]})"
            raise InputError(where, f"{what} is not finite", "try --dtype float32, or drop the pair")

    def load(self, name: str) -> dict[str, np.ndarray]:
        """A finished block, put together from its parts: prompts (or functionals) in order."""
        parts = [self.run.load(part) for part in self.run.parts(name)]
        key, axes = "prompt", {"delta_z": 1, "delta_y": 1, "delta_x": 1, "delta_h": 2}
        if self.plan.engine == "query":
            key, axes = "functional", {"value": 0}
        order = np.concatenate([p[key] for p in parts])
        # Two machines may have written the same items; the later ones are as good as the earlier.
        _, first = np.unique(order, return_index=True)
        out = {k: v for k, v in parts[0].items() if k not in axes and k != key}
        for field_, axis in axes.items():
            if field_ in parts[0]:
                out[field_] = np.take(np.concatenate([p[field_] for p in parts], axis), first, axis)
        return out

    def delta_x(self, block: dict[str, np.ndarray]) -> np.ndarray:
        """ΔX of a loaded block under the configured gate."""
        if self.config.gate == "off":
            return block["delta_z"]
        dz = block["delta_z"]
        return block["delta_x"] if "delta_x" in block else np.where(self.evaluation.active[None], dz, np.zeros_like(dz))
