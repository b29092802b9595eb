"""Sweeps: a grid of questions answered from what a run kept, and from further runs where a question needs another pass."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track
from scipy.stats import rankdata

from smda_jax.errors import InputError
from smda_jax.files import replacing, write_text, writing
from smda_jax.policy.ridge import stratified_split
from smda_jax.policy.selection import strata
from smda_jax.policy.sums import Answers, Cells, Sums, accumulate, answer, r2_elsewhere
from smda_jax.runs.attribution.attribute import attribute
from smda_jax.runs.config import Sweep
from smda_jax.runs.folder.cache import Cache, read_cache
from smda_jax.runs.sweep.cells import (
    AFTER,
    WEIGHTING,
    activations,
    check_cells,
    chosen_pairs,
    defaults,
    plan_cells,
    weights_of,
)
from smda_jax.runs.sweep.grid import Grid, digest_of, option, read_grid

TOP = 10  # pairs, of which the overlap with the reference is told
HELD = 2**28  # bytes of sums at a time


def sweep(config: Sweep, console: Console | None = None) -> Path:
    """Answers every cell of a grid → the table `sweep.parquet`.

    What is finished is kept part by part: the same command continues, and `--part k/n` on several machines makes one table.

    Raises:
        InputError: the run, the grid, or a cell of it cannot be used. What needs no further pass to be known is said before
            anything is written.
    """
    console = console or Console()
    if config.grid is None or config.out is None:
        raise InputError("sweep", "needs --grid and --out", "--grid grid.yaml --out FOLDER")
    grid, share = read_grid(config.grid), _share(config.part)
    reference = read_cache(config.run)
    out = config.out.expanduser().absolute()
    _claim(out, reference, grid)
    of_pass = [list(_jobs(options, reference, grid)) for options in grid.passes()]
    jobs = [job for own in of_pass for job in own]
    # A further pass is run by one machine alone; of the run's own the parts are shared out.
    shares = of_pass if grid.needs_passes else [[job] for job in jobs]
    own = [job for i, some in enumerate(shares) if i % share[1] == share[0] for job in some]
    wanted = (*config.tables, "sweep")
    missing = [job for job in own if not all((out / "parts" / f"{t}-{job.name}.parquet").exists() for t in wanted)]
    if len(missing) < len(own):
        console.print(f"continuing: {len(own) - len(missing)} of {len(own)} parts are done")
    caches: dict[str, Cache] = {}
    standard = _standard(reference)
    for job in track(missing, "cells", console=console, disable=len(missing) < 2):
        if job.key not in caches:
            caches = {job.key: _run_pass(job.options, reference, out, console)}  # one at a time: they are large
            if grid.needs_passes:
                check_cells(caches[job.key], grid)
        tables = _answers(caches[job.key], reference, standard, job, grid, wanted)
        for name in wanted:  # the sweep's own last: where it is, the others are
            _write(out / "parts" / f"{name}-{job.name}.parquet", pa.concat_tables(tables[name], promote_options="permissive"))
    waiting = sum(not all((out / "parts" / f"{t}-{job.name}.parquet").exists() for t in wanted) for job in jobs)
    if waiting:
        console.print(f"{waiting} of {len(jobs)} parts are left to other machines; the last one to finish writes sweep.parquet")
        return out
    for name in wanted:
        parts = [pq.read_table(out / "parts" / f"{name}-{job.name}.parquet") for job in jobs]
        _write(out / f"{name}.parquet", pa.concat_tables(parts, promote_options="permissive"))
    cells = pq.read_metadata(out / "sweep.parquet").num_rows
    console.print(f"{cells} cell{'s' * (cells != 1)} in {out / 'sweep.parquet'}", soft_wrap=True)
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
    changed = {name: value for name, value in asked.items() if value != getattr(reference.config, name)}
    if not changed:
        return reference
    folder = out / "passes" / digest_of(reference.fingerprint, changed)
    console.print(f"pass {', '.join(f'{k} = {v}' for k, v in changed.items())}", soft_wrap=True)
    if "targets" in changed:
        changed["target_ids"] = ()  # which would replace them
    here = {"out": folder, "check_pairs": 0, "bootstrap": 0, "distributed": False, "shard_params": 1}
    attribute(replace(reference.config, **(changed | here)), Console(quiet=True))
    found = read_cache(folder)
    for name, value in reference.inputs.items():
        if name not in changed and found.inputs[name] != value:
            raise InputError(getattr(reference.config, name), "has changed since the run", "sweep a new run of it")
    return found


def _answers(
    cache: Cache, reference: Cache, standard: tuple[np.ndarray, np.ndarray], job: Job, grid: Grid, wanted: tuple[str, ...]
) -> dict[str, list[pa.Table]]:
    asked, names = plan_cells(cache, grid)
    after = grid.along(AFTER, defaults(cache))
    Y = cache.y.astype(np.float64)
    refused = np.array(cache.prompts["refused"], bool)
    held_out = np.zeros(len(Y), bool)
    parts = strata(cache.prompts["label"], refused)
    held_out[stratified_split(parts, cache.config.test_fraction, cache.config.seed)[1]] = True
    tables: dict[str, list[pa.Table]] = {name: [] for name in wanted}
    for gate, threshold in dict.fromkeys((w["gate"], w["threshold"]) for w in job.weightings):
        own = [w for w in job.weightings if (w["gate"], w["threshold"]) == (gate, threshold)]
        X, delta_x = activations(cache, gate, threshold)
        weights = np.stack([weights_of(cache, w["subset"], w["bootstrap"]) for w in own])
        sums = accumulate(X, Y, delta_x, cache.delta_y, weights)
        nobody = np.zeros((1, *X.shape)), np.zeros((1, len(Y)))  # fits alone are asked of these
        parts = [accumulate(X, Y, *nobody, weights * inside) for inside in (~held_out, held_out)]
        for i, weighting in enumerate(own):
            found = answer(sums.at(i), asked)
            if not np.isfinite(found.W).all():
                bad = names[int(np.argmin(np.isfinite(found.W).all(axis=1)))]
                raise InputError("policy", f"XᵀX + {bad['alpha']:g}·I cannot be factored", "raise alpha")
            test = np.full(len(names), np.nan)
            if held_out.any() and (~held_out).any():
                test = r2_elsewhere(answer(parts[0].at(i), asked), parts[1].at(i))
            spot = Spot(cache, reference, standard, job.options | weighting, sums.at(i))
            for more in after:
                for name, table in _tables(spot, asked, names, found, test, more, wanted).items():
                    tables[name].append(table)
    return tables


class Spot(NamedTuple):
    """Where cells of one weighting stand: their pass, the run they are compared with, and the weighting itself."""

    cache: Cache
    reference: Cache
    standard: tuple[np.ndarray, np.ndarray]
    weighting: dict[str, Any]
    sums: Sums


def _tables(
    spot: Spot,
    asked: Cells,
    names: list[dict[str, Any]],
    found: Answers,
    test: np.ndarray,
    more: dict[str, Any],
    wanted: tuple[str, ...],
) -> dict[str, pa.Table]:
    """Tidy rows of one weighting: axes, fit, scores, and how far all that is from the reference cell."""
    cache, (W0, score0) = spot.cache, spot.standard
    own, factor = chosen_pairs(cache, more["pairs"]), more["learning_rate"] / cache.config.learning_rate
    score, labels = found.score[:, own], np.array([str(x) for x in cache.pairs["label"]])[own]
    ids, W = np.array(cache.pairs["pair_id"])[own].tolist(), np.asarray(found.W)
    same = cache.feature_ids == spot.reference.feature_ids
    mean_dy = float((np.asarray(spot.sums.dy)[own] / float(spot.sums.n)).mean() * factor)
    rank, overlap = _rank_correlation(score, score0[own]), _overlap(score, score0[own])
    through = [np.abs(W[:, None] * np.asarray(v)[:, own]).sum(axis=(1, 2)) for v in (found.delta_w_x, found.delta_w_y)]
    rows, of_pairs, of_features = [], [], []
    for c, name in enumerate(names):
        axes = {k: _plain(v) for k, v in (spot.weighting | name | more).items()}
        values, mask, cell = score[c] * factor, np.asarray(asked.mask[c]), digest_of(spot.cache.fingerprint, axes)
        rows.append({
            "cell": cell, **axes, "n_features": int(mask.sum()), "n_prompts": float(spot.sums.n), "n_pairs": len(ids),
            "r2": float(found.r2[c]), "r2_held_out": float(test[c]), "norm_w": float(np.linalg.norm(W[c])),
            "mean_score": float(values.mean()), "std_score": float(values.std()), "median_score": float(np.median(values)),
            "positive_share": float((values > 0).mean()), "mean_delta_y": mean_dy,
            "delta_x_share": float(through[0][c] / max(through[0][c] + through[1][c], 1e-300)),
            **{f"median_score[{x}]": float(np.median(values[labels == x])) for x in dict.fromkeys(labels.tolist())},
            "pairs_rank_correlation": float(rank[c]), "top_pairs_overlap": float(overlap[c]),
            "coefficients_rank_correlation":
                float(_rank_correlation(W[c : c + 1, mask], W0[mask])[0]) if same else float("nan"),
            "sign_changes": int((np.sign(W[c, mask]) != np.sign(W0[mask])).sum()) if same else None,
        })  # fmt: skip
        if "pairs" in wanted:
            of_pairs.append(pa.table({"cell": [cell] * len(ids), "pair_id": ids, "score": values}))
        if "coefficients" in wanted:
            k = cache.feature_ids
            of_features.append(pa.table({"cell": [cell] * len(k), "feature_id": k, "weight": W[c]}))
    # What is not defined (NaN) is null.
    rows = [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in rows]
    tables = {"sweep": pa.Table.from_pylist(rows), "pairs": of_pairs, "coefficients": of_features}
    return {name: pa.concat_tables(v) if isinstance(v, list) else v for name, v in tables.items() if name in wanted}


def _standard(reference: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Policy and scores of the reference cell: the run's own settings."""
    c = reference.config
    X, delta_x = activations(reference, c.gate, 0.0)
    ones, mask = np.ones((1, len(X))), np.ones((1, X.shape[1]), bool)
    sums = accumulate(X, reference.y.astype(np.float64), delta_x, reference.delta_y, ones)
    no = np.zeros(1, bool)
    found = answer(sums.at(0), Cells(np.array([reference.alpha]), mask, no, no))
    return np.asarray(found.W)[0], found.score[0]


def _rank_correlation(values: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """Spearman's ρ of every row with the reference; NaN where nothing varies."""
    a, b = rankdata(values, axis=1), rankdata(standard)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a @ b) / np.sqrt((a * a).sum(axis=1) * (b @ b))


def _overlap(values: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """Share of the reference's strongest pairs, by |score|, that are among a cell's strongest."""
    k = min(TOP, len(standard))
    first = np.argsort(-np.abs(standard), kind="stable")[:k]
    return np.isin(np.argsort(-np.abs(values), axis=1, kind="stable")[:, :k], first).mean(axis=1)


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple) else value


def _share(part: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", part or "1/1")
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError("--part", f"{part!r} is no share", "k/n with k from 1 to n")
    return int(found[1]) - 1, int(found[2])


def _claim(out: Path, reference: Cache, grid: Grid) -> None:
    """Makes the folder of a sweep, or finds that it is the same one's."""
    if {"targets", "target_ids"} <= set(grid.axes):
        raise InputError("grid", "targets and target_ids are one axis", "name one of them")
    record = out / "sweep.json"
    content = {"run": str(reference.path.resolve()), "fingerprint": reference.fingerprint, "grid": grid.axes}
    if not grid.needs_passes:  # another pass may have other features: it is checked once it is there
        check_cells(reference, grid)
    if record.exists():
        if json.loads(record.read_text()) != json.loads(json.dumps(content)):
            raise InputError(out, "holds a sweep of another run or grid", "--out names a new folder")
        return
    if out.exists() and any(p.name != "parts" and ".part" not in p.name for p in out.iterdir()):
        raise InputError(out, "is not empty and holds no sweep", "--out names a new folder, or one to continue")
    with writing(out):
        (out / "parts").mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(content, indent=2) + "\n")


def _write(path: Path, table: pa.Table) -> None:
    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd")
