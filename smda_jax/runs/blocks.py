"""The pair blocks of a run: computed once, kept on disk, read one at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from smda_jax.data.batches import blocks_by_length, scored_positions
from smda_jax.errors import InputError
from smda_jax.jacobian import passes
from smda_jax.jacobian.passes import Evaluation
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs import Inputs
from smda_jax.runs.store import RunFolder


@dataclass(frozen=True)
class Blocks:
    """Blocks of pairs of about the same length, each against all prompts."""

    config: Attribute
    inputs: Inputs
    evaluation: Evaluation
    run: RunFolder

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, pair rows) of every block; a pure function of the pairs' lengths."""
        for index, (rows, _) in enumerate(self._plan()):
            yield f"pairs-{index:06d}", rows

    def _plan(self) -> list[tuple[np.ndarray, int]]:
        return list(blocks_by_length([len(t.ids) for t in self.inputs.pair_tokens], self.config.pair_block))

    def compute(self, console: Console) -> None:
        """Computes what is missing, block by block."""
        blocks = list(self)
        todo = [(name, rows) for name, rows in blocks if not self.run.has(name)]
        shapes = self._shapes()
        total, prompts = len(self.inputs.pairs), len(self.evaluation.tokens)
        finished = total - sum(len(rows) for _, rows in todo)
        if finished and todo:
            console.print(f"continuing: {finished} of {total} pairs are done")
        columns = (
            TextColumn("pairs {task.completed:.0f}/{task.total}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(True),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("pairs", total=total, completed=finished)
            for name, rows in todo:
                step = len(rows) / prompts
                self.run.save(name, self._one(rows, shapes[name], lambda done, step=step: bar.advance(task, done * step)))

    def _shapes(self) -> dict[str, dict[str, int]]:
        """Padding of every block: what the longest pair of its bucket needs, so that a bucket is one compiled program."""
        plan, most = self._plan(), {}
        for rows, width in plan:
            scored = [len(scored_positions(self.inputs.pair_tokens[i], self.config.loss_scope)) for i in rows]
            most[width] = max(most.get(width, 0), *scored)
        rows_of = {width: max(len(rows) for rows, w in plan if w == width) for width in most}
        return {
            name: {"width": width, "rows": rows_of[width], "positions": most[width]}
            for (name, _), (_, width) in zip(self, plan, strict=True)
        }

    def _one(self, rows: np.ndarray, shape: dict[str, int], progress: Callable[[int], None]) -> dict[str, np.ndarray]:
        c, inputs = self.config, self.inputs
        tokens = [inputs.pair_tokens[i] for i in rows]
        steps, statistics = passes.factors_of(inputs.model, tokens, c.learning_rate, c.loss_scope, **shape)
        n = len(rows)
        loss, norm = (np.asarray(v, np.float64)[:n] for v in statistics)
        self._refuse(rows, np.isfinite(loss) & np.isfinite(norm), "its loss or gradient")
        delta = passes.ENGINES[c.engine](self.evaluation, steps, progress=progress)
        finite = np.array(
            [all(np.isfinite(v).all() for v in changes) for changes in zip(delta.z[:n], delta.x[:n], delta.y[:n], strict=True)]
        )
        self._refuse(rows, finite, "the step on it")
        out = {"pair": rows, "loss": loss, "gradient_norm": norm, "delta_z": delta.z[:n], "delta_y": delta.y[:n]}
        # First-order ΔX is the gate times ΔZ; a true step may also open and close gates.
        return out | ({"delta_x": delta.x[:n]} if c.engine == "finite" else {})

    def _refuse(self, rows: np.ndarray, fine: np.ndarray, what: str) -> None:
        if not fine.all():
            row = int(rows[int(np.argmin(fine))])
            where = f"{self.inputs.pairs.where(row)} (pair {self.inputs.pairs.ids[row][:12]})"
            raise InputError(where, f"{what} is not finite", "try --dtype float32, or drop the pair")

    def delta_x(self, block: dict[str, np.ndarray]) -> np.ndarray:
        """ΔX of a stored block under the configured gate."""
        if self.config.gate == "off":
            return block["delta_z"]
        return block["delta_x"] if "delta_x" in block else np.where(self.evaluation.active[None], block["delta_z"], 0)
