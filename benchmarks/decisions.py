#!/usr/bin/env python3
"""What acting on the demo's flags comes to, and how good its figures are: a record and two pictures
in benchmarks/results.

    python benchmarks/decisions.py [--run FOLDER]

Without a run `demo --validate` is done now (some five minutes on two cores).
"""

import json
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import tyro
from shapes import ROOT, commit  # type: ignore[import-not-found]

from smda_jax.cli import main
from smda_jax.report.data import read_run
from smda_jax.report.figures.decision import experiment, validation

TARGETS = ("mean_y", "coefficient median", "coefficient worst", "category median")


@dataclass(frozen=True)
class Benchmark:
    """What to record."""

    run: Path | None = None
    """Folder of a `demo --validate` that is there already."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the record."""


def record(path: Path) -> dict:
    """The record of a run."""
    run = read_run(path)
    assert run.experiment is not None
    assert run.validation is not None
    table, arms = run.tables["validation.parquet"], run.tables["experiment/experiment.parquet"]
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    lds: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["measure"] == "lds" and row["target"] in TARGETS:
            own = [row[k] for k in ("value", "low", "high", "reference")]
            lds.setdefault(row["figure"], {})[row["target"]] = own
    found = {
        row["figure"]: [row["value"], row["reference"]]
        for row in rows
        if (row["measure"], row["target"]) == ("auprc", "pooled")
    }
    by_arm = {}
    for name in dict.fromkeys(arms["arm"]):
        own = [i for i, arm in enumerate(arms["arm"]) if arm == name]
        f1 = np.array([arms["f1"][i] for i in own])
        spread = float(f1.std(ddof=1)) if len(f1) > 1 else 0.0
        pairs = arms["pairs"][own[0]]
        by_arm[name] = {"pairs": pairs, "orders": len(own), "f1": float(f1.mean()), "sd": spread}
    return {
        "benchmark": "decisions",
        "schema_version": 1,
        "commit": commit(),
        "device": {"platform": jax.default_backend(), "kind": jax.devices()[0].device_kind},
        "versions": {name: version(name) for name in ("smda-jax", "jax", "optax")},
        "step": run.record["step"],
        "experiment": {
            k: run.experiment[k]
            for k in (
                "recipe",
                "removed",
                "pairs",
                "planted",
                "planted_removed",
                "differences",
                "agreement",
                "finding",
            )
        }
        | {"arms": by_arm},
        "validation": {
            "recipe": run.validation["recipe"],
            "subsets": rows[0]["count"],
            "lds": lds,
            "planted_auprc": found,
        },
    }


def write(benchmark: Benchmark) -> None:
    """Writes the record and the pictures."""
    with tempfile.TemporaryDirectory() as place:
        path = benchmark.run or Path(place) / "demo"
        if benchmark.run is None:
            main(["demo", "--validate", "--out", str(path)])
        content, run = record(path), read_run(path)
        name = f"decisions-{content['device']['platform']}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        (benchmark.out / name).write_text(json.dumps(content, indent=2) + "\n")
        for title, draw in {"experiment": experiment, "validation": validation}.items():
            figure = draw(run)
            assert figure is not None
            figure.savefig(benchmark.out / f"{title}.png", dpi=130)
    print(benchmark.out / name)


if __name__ == "__main__":
    write(tyro.cli(Benchmark))
