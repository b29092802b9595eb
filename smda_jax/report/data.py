"""What the page and the figures show of a run, read from the tables in its folder alone."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import leaves_list, linkage

from smda_jax.errors import InputError
from smda_jax.runs.attribution.columns import COLUMNS, SWEEP_COLUMNS

PAIRS, CELLS = (
    1_000,
    120_000,
)  # pairs, and pairs x features, that a page holds: of more, those with the largest |score|
FEATURES = 200  # whose prompts a page holds: of more, those with the largest share of the shifts
PROMPTS = 10_000  # of all categories together
TOKENS = 60_000  # whose contributions a page holds
TOKEN_KEYS = ("pair_id", "row", "position", "token_id", "token")
TEXT = 2_000  # characters of a prompt or response that a page holds

BEGINS = {
    "name": "begins",
    "unit": "nats",
    "raised": "the answer begins with a target",
}  # before 0.2

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        record: run.json.
        tables: by file name; those that the run did not write are absent.
        shown: rows of pairs.parquet that are shown pair by pair.
        contribution: W ΔW by pathway (`x`, `y`) of those pairs [pair, feature]; empty where only
            scores were kept.
        delta_w: `value`, `low`, `high` of those pairs.
        pair_order: rows of `shown`, like ones together within their class.
        feature_order: columns, like ones together.
    """

    path: Path
    record: dict[str, Any]
    tables: dict[str, Columns]
    shown: Int[np.ndarray, " pair"]
    contribution: dict[str, Float[np.ndarray, "pair feature"]]
    delta_w: dict[str, Float[np.ndarray, "pair feature"]]
    pair_order: Int[np.ndarray, " shown"]  # empty where only scores were kept
    feature_order: Int[np.ndarray, " feature"]

    @cached_property
    def experiment(self) -> dict[str, Any] | None:
        """What acting on the run came to; None where nobody has."""
        return _json_beside(self.path / "experiment" / "experiment.json")

    @cached_property
    def validation(self) -> dict[str, Any] | None:
        """How good the run's figures are; None where nobody has looked."""
        return _json_beside(self.path / "validation.json")

    @property
    def classes(self) -> list[str]:
        """Of the pairs, in order of appearance."""
        return list(dict.fromkeys(x or "unlabelled" for x in self.tables["pairs.parquet"]["label"]))

    @property
    def unit(self) -> str:
        """Of the behaviour."""
        return self.record["behaviour"]["unit"]

    @property
    def moves(self) -> bool:
        """Whether a step moves Y at all, or the data give it."""
        return self.record["behaviour"].get("moves", True)

    @cached_property
    def leading_label(self) -> str | None:
        """The label whose prompts show the behaviour most; None without two labels."""
        table = self.tables["prompts.parquet"]
        labels = [x for x in dict.fromkeys(table["label"]) if x is not None]
        if len(labels) < 2:
            return None

        def most(label: str) -> tuple[float, float]:
            own = np.array([x == label for x in table["label"]])
            return float(np.mean(np.array(table["shows"])[own])), float(
                np.mean(np.array(table["y"])[own])
            )

        return max(labels, key=most)

    def features(self) -> Columns:
        """features.parquet, of all pairs."""
        table = self.tables.get("features.parquet", {})
        rows = [i for i, name in enumerate(table.get("class", ())) if name == "all"]
        return {key: [values[i] for i in rows] for key, values in table.items()}


def _json_beside(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise InputError(path, f"cannot be read: {error}", "delete it") from error


def rows_of(table: Columns) -> list[dict[str, Any]]:
    """A table row by row."""
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def read_run(path: Path) -> Run:
    """Reads the tables of a run.

    Raises:
        InputError: it is no run, is not finished, or is of another version.
    """
    try:
        record = json.loads((path / "run.json").read_text())
        status = record["status"]
        record.setdefault("behaviour", BEGINS)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            path, "is not a run folder", "give the folder that attribute wrote"
        ) from error
    if status != "complete":
        raise InputError(path, "is not complete", "run its attribute command again: it continues")
    names = [
        name
        for name in (*COLUMNS, "verify_points.parquet")
        if name not in ("influence.parquet", "scores.parquet", "tokens.parquet")
    ]
    tables = {
        name: pq.read_table(path / name).to_pydict() for name in names if (path / name).is_file()
    }
    for name in ("prompts.parquet", "gaps.parquet"):  # by its name in version 0.1
        tables.get(name, {}).setdefault("shows", tables.get(name, {}).get("refused"))
    if "agreement.parquet" not in tables:
        raise InputError(path, "was written by an earlier version", "attribute into a new folder")
    score = np.array(tables["pairs.parquet"]["score"])
    if not (path / "influence.parquet").is_file():
        nothing = np.zeros(0, int)
        return Run(path, record, tables, _strongest(score, 1), {}, {}, nothing, nothing)
    policy = json.loads((path / "policy.json").read_text())
    weight = dict(zip(policy["feature_ids"], policy["weights"], strict=True))
    rows = pq.read_table(path / "influence.parquet", filters=[("subset", "=", "all")])
    # The features of every pair, in the order of the run; the policy's file has another.
    ids = rows["feature_id"].to_pylist()[: len(weight)]
    weights = np.array([weight[i] for i in ids])
    shown = _strongest(score, len(ids))
    grid = {
        name: rows[name].to_numpy().reshape(len(score), len(ids))[shown]
        for name in ("delta_w_x", "delta_w_y", "delta_w", "delta_w_low", "delta_w_high")
        if name in rows.column_names
    }
    contribution = {"x": weights * grid["delta_w_x"], "y": weights * grid["delta_w_y"]}
    total = contribution["x"] + contribution["y"]
    label = np.array([x or "unlabelled" for x in tables["pairs.parquet"]["label"]])[shown]
    order = [
        own[_alike(total[own])]
        for own in (np.flatnonzero(label == name) for name in dict.fromkeys(label.tolist()))
    ]
    delta_w = {
        "value": grid["delta_w"],
        **{k: grid[f"delta_w_{k}"] for k in ("low", "high") if f"delta_w_{k}" in grid},
    }
    return Run(
        path, record, tables, shown, contribution, delta_w, np.concatenate(order), _alike(total.T)
    )


def _strongest(score: Float[np.ndarray, " pair"], features: int) -> Int[np.ndarray, " shown"]:
    most = min(PAIRS, max(1, CELLS // features))
    return np.sort(np.argsort(-np.abs(score), kind="stable")[:most])


def _alike(rows: Float[np.ndarray, "row column"]) -> Int[np.ndarray, " row"]:
    """Order that puts rows of like direction beside each other."""
    if len(rows) < 3:
        return np.arange(len(rows))
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(size > 0, size, 1)
    return leaves_list(linkage(unit, "average", optimal_ordering=len(rows) <= 500))


def content(run: Run, *, redact: bool = False) -> dict[str, Any]:
    """Everything that the page shows, as JSON; figures are rounded to five digits."""
    pairs = _cut({k: [v[i] for i in run.shown] for k, v in run.tables["pairs.parquet"].items()})
    candidates = _cut(_of_strongest(run, run.tables.get("label_candidates.parquet", {})))
    if redact:
        for table in (pairs, candidates):
            table.update(
                {k: [None] * len(v) for k, v in table.items() if k in ("prompt", "response")}
            )
    record = run.record
    return {
        "name": run.path.name,
        "totals": totals(run),
        "pairs_in_run": record["pairs"],
        "prompts_in_run": record["prompts"],
        "classes": run.classes,
        "settings": record["config"],
        "versions": record["versions"],
        "device": record["device"],
        "engine": record.get("engine"),
        "timings": record.get("timings", {}),
        "summary": record["summary"],
        "conventions": record["conventions"],
        "unit": run.unit,
        "raised": record["behaviour"]["raised"],
        "behaviour": record["behaviour"]["name"],
        "moves": run.moves,
        "expected": record.get("polarity", {}),
        "pairs": _short(pairs),
        "features": _short(run.features()),
        "class_features": _short(_of_strongest(run, run.tables.get("features.parquet", {}))),
        "contribution": {k: _matrix(v) for k, v in run.contribution.items()},
        "delta_w": {k: _matrix(v) for k, v in run.delta_w.items()},
        "pair_order": run.pair_order.tolist(),
        "feature_order": run.feature_order.tolist(),
        "gaps": _short(run.tables["gaps.parquet"]),
        "gap_features": _short(run.tables["gap_features.parquet"]),
        "category_prompts": _short(_of_categories(run, redact)),
        "landing": _short(_of_strongest(run, run.tables.get("landing.parquet", {}))),
        "interference": _short(run.tables.get("interference.parquet", {})),
        "agreement": _short(run.tables["agreement.parquet"]),
        "candidates": _short(candidates),
        "verify": _short(run.tables.get("verify.parquet", {})),
        "validation": _short(run.tables.get("validation.parquet", {})),
        "experiment": run.experiment
        and {
            "arms": _short(run.tables.get("experiment/experiment.parquet", {})),
            "shifts": _short(run.tables.get("experiment/shifts.parquet", {})),
            **run.experiment,
        },
        "tokens": None if redact else _of_tokens(run, pairs["pair_id"]),
        "verify_points": _short(run.tables.get("verify_points.parquet", {})),
        "redacted": redact,
        "columns": {
            name: columns for name, columns in COLUMNS.items() if (run.path / name).is_file()
        },
        "sweep_columns": SWEEP_COLUMNS,
    }


def totals(run: Run) -> dict[str, Any]:
    """Counts and scores over all pairs of the run, whichever are shown."""
    pairs = run.tables["pairs.parquet"]
    counts = {
        name: sum(map(bool, pairs.get(name, ())))
        for name in ("flagged", "flagged_delta_y", "unintended")
    }
    for flag, stability in (
        ("flagged", "flag_stability"),
        ("flagged_delta_y", "flag_delta_y_stability"),
    ):
        both = zip(pairs[flag], pairs.get(stability, ()), strict=False)
        counts[f"stable_{flag}"] = sum(bool(f) and s is not None and s >= 0.95 for f, s in both)
    planted = [
        f for f, known in zip(pairs["flagged_delta_y"], pairs["planted"], strict=True) if known
    ]
    counts |= {"planted": len(planted), "planted_flagged": sum(map(bool, planted))}
    known = any(flag is not None for flag in pairs["flagged_delta_y"])
    label = [x or "unlabelled" for x in pairs["label"]]
    scores = {
        name: [_figure(s) for s, own in zip(pairs["score"], label, strict=True) if own == name]
        for name in run.classes
    }
    kept = any(value is not None for value in pairs["mean_delta_y"])
    known_of = {"sure": "flag_stability" in pairs, "delta_y": known, "mean_delta_y": kept}
    return {**counts, "scores": scores, **known_of}


def _of_categories(run: Run, redact: bool) -> Columns:
    """The prompts of every category, the least Y first; of very many, those that the policy knows
    least of."""
    table = run.tables["prompts.parquet"]
    y, residual = np.array(table["y"]), np.array(table["y"]) - np.array(table["prediction"])
    category, rows = np.array([c or "" for c in table["category"]]), []
    names = list(dict.fromkeys(run.tables["gaps.parquet"]["category"]))
    for name in names:
        own = np.flatnonzero(category == name)
        own = own[
            np.argsort(-np.abs(residual[own]), kind="stable")[: max(1, PROMPTS // len(names))]
        ]
        rows += own[np.argsort(y[own], kind="stable")].tolist()
    keys = ("category", "prompt_id", "shows", "y", "prediction", "prompt")
    out = {key: [table[key][i] for i in rows] for key in keys} | {
        "residual": residual[rows].tolist()
    }
    return _cut(out | {"prompt": [None] * len(rows)} if redact else out)


def _of_tokens(run: Run, shown: list[str]) -> dict[str, Any] | None:
    """What single tokens contribute, of the pairs that are shown, as many as a page holds."""
    path = run.path / "tokens.parquet"
    if not path.is_file():
        return None
    table = pq.read_table(path)
    columns = [c for c in table.column_names if c not in TOKEN_KEYS]
    own: dict[str, list[Any]] = {pair: [] for pair in shown}
    rows = zip(*(table[name].to_pylist() for name in ("pair_id", "token", *columns)), strict=True)
    left = TOKENS
    for pair, token, *values in rows:
        if pair in own and token is not None and left > 0:
            own[pair].append([token, *map(_figure, values)])
            left -= 1
    return {"columns": columns, "pairs": {pair: some for pair, some in own.items() if some}}


def _of_strongest(run: Run, table: Columns) -> Columns:
    """The rows of the features that a reader is likely to ask for."""
    share = np.nan_to_num(np.array(run.features().get("share", []), float))
    if not len(share):
        return {}  # there is no feature to ask for
    if len(share) <= FEATURES:
        return table
    ids = set(np.array(run.features()["feature_id"])[np.argsort(-share)[:FEATURES]].tolist())
    rows = [i for i, one in enumerate(table["feature_id"]) if one in ids]
    return {key: [values[i] for i in rows] for key, values in table.items()}


def _cut(table: Columns) -> Columns:
    long = {k: [v and v[:TEXT] for v in table[k]] for k in ("prompt", "response") if k in table}
    return {**table, **long}


def _figure(value: Any) -> Any:
    if isinstance(value, float):
        return None if not np.isfinite(value) else float(f"{value:.5g}")
    return value


def _short(table: Columns) -> Columns:
    return {k: [_figure(v) for v in values] for k, values in table.items()}


def _matrix(values: Float[np.ndarray, "pair feature"]) -> list[list[float | None]]:
    return [[_figure(v) for v in row] for row in values.tolist()]
