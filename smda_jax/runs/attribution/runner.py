"""The blocks of a run: computed once, kept on disk in parts, read one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from rich.console import Console

from smda_jax.data.batch.chunks import Chunk
from smda_jax.data.records import Pairs
from smda_jax.engines.contract import BlockShifts, Engine, Job, NotFiniteError
from smda_jax.errors import InputError
from smda_jax.runs.folder.store import RunFolder
from smda_jax.runs.progress import bar


@dataclass(frozen=True)
class Blocks:
    """Blocks of pairs, as the engine of a job divides them.

    Every block is kept in parts that say themselves which items they hold.
    """

    engine: Engine
    job: Job
    pairs: Pairs
    folder: RunFolder

    def __iter__(self) -> Iterator[tuple[str, Int[np.ndarray, " pair"]]]:
        """(name, pair rows) of every block; a pure function of the plan and the lengths."""
        for number, chunk in enumerate(self._chunks):
            yield self._name(number), chunk.rows

    @cached_property
    def _chunks(self) -> list[Chunk]:
        return self.engine.blocks(self.job)

    @staticmethod
    def _name(number: int) -> str:
        return f"pairs-{number:06d}"

    def compute(self, console: Console) -> None:
        """Computes what is missing, part by part.

        Raises:
            InputError: a loss, gradient or change is not finite.
            TooLargeError: a block of one pair does not fit into memory.
        """
        items = np.arange(self.engine.items(self.job))
        missing = [np.setdiff1d(items, list(self._done(name, rows))) for name, rows in self]
        share = [len(rows) / len(self.pairs) for _, rows in self]
        both = zip(share, missing, strict=True)
        finished = sum(s * (1 - len(left) / len(items)) for s, left in both)
        if 0 < finished < 1 - 1e-9:
            console.print(f"continuing: {finished:.0%} of the work is done")
        with bar(console, "pairs", finished) as advance:
            try:
                for part in self.engine.compute(self.job, self._chunks, missing, advance):
                    rows = self._chunks[part.block].rows
                    held = {"pair": rows, self.engine.item: part.items}
                    found = held | part.statistics._asdict() | part.arrays
                    self.folder.save_part(self._name(part.block), found)
            except NotFiniteError as error:
                short = self.pairs.ids[error.pair][:12]
                where = f"{self.pairs.where(error.pair)} (pair {short})"
                remedy = "try --dtype float32, or drop the pair"
                raise InputError(where, f"{error.what} is not finite", remedy) from error

    def _done(self, name: str, rows: Int[np.ndarray, " pair"]) -> set[int]:
        """Items that a block is finished with.

        Raises:
            InputError: a part holds other pairs than the block.
        """
        done: set[int] = set()
        for part in self.folder.parts(name):
            found = self.folder.load(part, only=(self.engine.item, "pair"))
            if not np.array_equal(found["pair"], rows):
                where = self.folder.path / "jacobian" / part
                what = "holds other pairs than this version would put there"
                raise InputError(where, what, "another --out, or delete jacobian")
            done |= set(found[self.engine.item].tolist())
        return done

    def load(self, name: str) -> dict[str, np.ndarray]:
        """A finished block, put together from its parts: items in order."""
        parts = [self.folder.load(part) for part in self.folder.parts(name)]
        key, axes = self.engine.item, self.engine.axes
        order = np.concatenate([part[key] for part in parts])
        # Two machines may have written the same items; the later ones are as good as the earlier.
        _, first = np.unique(order, return_index=True)
        out = {k: v for k, v in parts[0].items() if k not in axes and k != key}
        for array, axis in axes.items():
            if array in parts[0]:
                whole = np.concatenate([part[array] for part in parts], axis)
                out[array] = np.take(whole, first, axis)
        return out

    def shifts(
        self,
    ) -> Iterator[tuple[Int[np.ndarray, " pair"], dict[str, np.ndarray], BlockShifts]]:
        """(pair rows, what is stored, what it says of the pairs) of every block."""
        for name, rows in self:
            stored = self.load(name)
            yield rows, stored, self.engine.shifts(self.job, stored)

    def compare(self, chosen: Int[np.ndarray, " pair"]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """First-order figures of some pairs → (their rows in the order found, figures by name)."""
        found: dict[str, list[np.ndarray]] = {}
        order: list[int] = []
        for name, rows in self:
            here = np.flatnonzero(np.isin(rows, chosen))
            if len(here):
                order += rows[here].tolist()
                figures = self.engine.compare(self.job, self.load(name), here)
                for key, value in figures.items():
                    found.setdefault(key, []).append(value)
        return np.array(order), {key: np.concatenate(v) for key, v in found.items()}
