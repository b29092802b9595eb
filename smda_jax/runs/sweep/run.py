"""Sweeps: a grid of questions answered from what a run kept, and from further runs where a question
needs another pass."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from smda_jax.errors import InputError
from smda_jax.files import replacing, write_text, writing
from smda_jax.policy.ridge import stratified_split
from smda_jax.policy.selection import strata
from smda_jax.policy.sums import accumulate, answer, r2_elsewhere
from smda_jax.runs.attribution.attribute import attribute
from smda_jax.runs.command import part_of
from smda_jax.runs.commands import Sweep
from smda_jax.runs.folder.cache import Cache, read_cache
from smda_jax.runs.sweep.cells import (
    AFTER,
    WEIGHTING,
    activations,
    check_cells,
    defaults,
    plan_cells,
    weights_of,
)
from smda_jax.runs.sweep.grid import Grid, digest_of, option, read_grid
from smda_jax.runs.sweep.rows import Answered, Spot, Standard, standard_of, tables_of

HELD = 2**28  # bytes of sums at a time


def sweep(config: Sweep, console: Console | None = None) -> Path:
    """Answers every cell of a grid → the table `sweep.parquet`.

    What is finished is kept part by part: the same command continues, and `--part k/n` on several
    machines makes one table.

    Raises:
        InputError: the run, the grid, or a cell of it cannot be used. What needs no further pass to
            be known is said before anything is written.
    """
    console = console or Console()
    if config.grid is None or config.out is None:
        raise InputError("sweep", "needs --grid and --out", "--grid grid.yaml --out FOLDER")
    grid, share = read_grid(config.grid), part_of(config.part)
    reference = read_cache(config.run)
    out = config.out.expanduser().absolute()
    _claim(out, reference, grid)
    of_pass = [list(_jobs(options, reference, grid)) for options in grid.passes()]
    jobs = [job for of_one in of_pass for job in of_one]
    # A further pass is run by one machine alone; of the run's own the parts are shared out.
    shares = of_pass if grid.needs_passes else [[job] for job in jobs]
    assigned = [job for i, some in enumerate(shares) if i % share[1] == share[0] for job in some]
    wanted = (*config.tables, "sweep")
    missing = [
        job
        for job in assigned
        if not all((out / "parts" / f"{t}-{job.name}.parquet").exists() for t in wanted)
    ]
    if len(missing) < len(assigned):
        console.print(
            f"continuing: {len(assigned) - len(missing)} of {len(assigned)} parts are done"
        )
    caches: dict[str, Cache] = {}
    standard = standard_of(reference)
    for job in track(missing, "cells", console=console, disable=len(missing) < 2):
        if job.key not in caches:
            caches = {
                job.key: _run_pass(job.options, reference, out, console)
            }  # one at a time: they are large
            if grid.needs_passes:
                check_cells(caches[job.key], grid)
        tables = _answers(caches[job.key], standard, job, grid, wanted)
        for name in wanted:  # the sweep's own last: where it is, the others are
            _write(
                out / "parts" / f"{name}-{job.name}.parquet",
                pa.concat_tables(tables[name], promote_options="permissive"),
            )
    waiting = sum(
        not all((out / "parts" / f"{t}-{job.name}.parquet").exists() for t in wanted)
        for job in jobs
    )
    if waiting:
        console.print(
            f"{waiting} of {len(jobs)} parts are left to other machines; the last one to finish "
            "writes sweep.parquet"
        )
        return out
    for name in wanted:
        parts = [pq.read_table(out / "parts" / f"{name}-{job.name}.parquet") for job in jobs]
        _write(out / f"{name}.parquet", pa.concat_tables(parts, promote_options="permissive"))
    cells = pq.read_metadata(out / "sweep.parquet").num_rows
    console.print(f"{cells} cell{'s' * (cells != 1)} in {out / 'sweep.parquet'}", soft_wrap=True)
    console.print(f"smda-jax sweep {out} --show says which axes matter", soft_wrap=True)
    return out


@dataclass(frozen=True)
class Job:
    """Some weightings of the prompts of one pass: what is computed and written together."""

    options: dict[str, Any]
    weightings: list[dict[str, Any]]
    name: str

    @property
    def key(self) -> str:
        """Of the pass."""
        return digest_of(self.options)


def _jobs(options: dict[str, Any], reference: Cache, grid: Grid) -> Iterator[Job]:
    weightings = grid.along(WEIGHTING, defaults(reference))
    pairs, d = len(reference.pairs["pair_id"]), len(reference.feature_ids)
    at_a_time = max(1, HELD // (8 * pairs * d * (d + 4)))
    for start in range(0, len(weightings), at_a_time):
        some = weightings[start : start + at_a_time]
        yield Job(options, some, digest_of(reference.fingerprint, grid.axes, options, some))


def _run_pass(options: dict[str, Any], reference: Cache, out: Path, console: Console) -> Cache:
    """The cache of a pass: the run's own, or that of another run, which is made or continued."""
    asked = {name: option(name, value) for name, value in options.items()}
    changed = {
        name: value for name, value in asked.items() if value != getattr(reference.config, name)
    }
    if not changed:
        return reference
    folder = out / "passes" / digest_of(reference.fingerprint, changed)
    console.print(f"pass {', '.join(f'{k} = {v}' for k, v in changed.items())}", soft_wrap=True)
    if "targets" in changed:
        changed["target_ids"] = ()  # which would replace them
    here = {
        "out": folder,
        "check_pairs": 0,
        "bootstrap": 0,
        "distributed": False,
        "shard_params": 1,
    }
    attribute(replace(reference.config, **(changed | here)), Console(quiet=True))
    found = read_cache(folder)
    for name, value in reference.inputs.items():
        if name not in changed and found.inputs[name] != value:
            raise InputError(
                getattr(reference.config, name),
                "has changed since the run",
                "sweep a new run of it",
            )
    return found


def _answers(
    cache: Cache, standard: Standard, job: Job, grid: Grid, wanted: tuple[str, ...]
) -> dict[str, list[pa.Table]]:
    """The rows of a job's cells, by table."""
    asked, names = plan_cells(cache, grid)
    after = grid.along(AFTER, defaults(cache))
    Y = cache.y.astype(np.float64)
    shows = np.array(cache.shows)
    held_out = np.zeros(len(Y), bool)
    parts = strata(cache.prompts["label"], shows)
    held_out[stratified_split(parts, cache.config.test_fraction, cache.config.seed)[1]] = True
    tables: dict[str, list[pa.Table]] = {name: [] for name in wanted}
    for gate, threshold in dict.fromkeys((w["gate"], w["threshold"]) for w in job.weightings):
        alike = [w for w in job.weightings if (w["gate"], w["threshold"]) == (gate, threshold)]
        X, delta_x = activations(cache, gate, threshold)
        weights = np.stack([weights_of(cache, w["subset"], w["bootstrap"]) for w in alike])
        sums = accumulate(X, Y, delta_x, cache.delta_y, weights)
        nobody = np.zeros((1, *X.shape)), np.zeros((1, len(Y)))  # fits alone are asked of these
        parts = [accumulate(X, Y, *nobody, weights * inside) for inside in (~held_out, held_out)]
        for i, weighting in enumerate(alike):
            found = answer(sums.at(i), asked)
            if not np.isfinite(found.W).all():
                bad = names[int(np.argmin(np.isfinite(found.W).all(axis=1)))]
                raise InputError(
                    "policy", f"XᵀX + {bad['alpha']:g}·I cannot be factored", "raise alpha"
                )
            test = np.full(len(names), np.nan)
            if held_out.any() and (~held_out).any():
                test = r2_elsewhere(answer(parts[0].at(i), asked), parts[1].at(i))
            spot = Spot(cache, standard, job.options | weighting, sums.at(i))
            cells = Answered(asked, names, found, test)
            for more in after:
                for name, table in tables_of(spot, cells, more, wanted).items():
                    tables[name].append(table)
    return tables


def _claim(out: Path, reference: Cache, grid: Grid) -> None:
    """Makes the folder of a sweep, or finds that it is the same one's."""
    if {"targets", "target_ids"} <= set(grid.axes):
        raise InputError("grid", "targets and target_ids are one axis", "name one of them")
    record = out / "sweep.json"
    content = {
        "run": str(reference.path.resolve()),
        "fingerprint": reference.fingerprint,
        "grid": grid.axes,
    }
    if (
        not grid.needs_passes
    ):  # another pass may have other features: it is checked once it is there
        check_cells(reference, grid)
    if record.exists():
        if json.loads(record.read_text()) != json.loads(json.dumps(content)):
            raise InputError(
                out, "holds a sweep of another run or grid", "--out names a new folder"
            )
        return
    if out.exists() and any(p.name != "parts" and ".part" not in p.name for p in out.iterdir()):
        raise InputError(
            out, "is not empty and holds no sweep", "--out names a new folder, or one to continue"
        )
    with writing(out):
        (out / "parts").mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(content, indent=2) + "\n")


def _write(path: Path, table: pa.Table) -> None:
    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd")
