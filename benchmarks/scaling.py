#!/usr/bin/env python3
"""How the time of the engines grows with pairs, prompts, features and layers, one at a time; writes
one record.

python benchmarks/scaling.py
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from attribution import Benchmark, main  # type: ignore[import-not-found]
from shapes import ROOT  # type: ignore[import-not-found]

BASE = Benchmark(
    shape="small", pairs=50, prompts=64, features=24, engines=("auto", "score"), loop_pairs=0
)
AXES = {
    "pairs": (50, 200),
    "query_pairs": ((100, 500, 2500),),  # the score alone, in one run
    "prompts": (64, 256),
    "features": (24, 96),
    "layers": (4, 16),
}


@dataclass(frozen=True)
class Scaling:
    """What to vary."""

    axes: tuple[str, ...] = tuple(AXES)
    """Of pairs, query_pairs (the score alone), prompts, features, layers."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the record."""


def run(c: Scaling) -> None:
    """Times every point, prints them, writes the record."""
    points, last, done = [], {}, {}
    for axis in c.axes:
        for value in AXES[axis]:
            engines = ("score",) if axis == "query_pairs" else BASE.engines
            b = replace(BASE, engines=engines, **{axis: value})
            last = done[b] = done.get(b) or main(b, write=False)  # the axes share their first point
            for name, row in last["engines"].items():
                asked = name.rpartition(" of ")[2] if axis == "query_pairs" else value
                if str(asked).isdigit():
                    points.append({"axis": axis, "value": int(asked), "way": name, **row})
    print(f"\n{'':14}{'':>8}  {'':24}{'s':>8}{'compile s':>11}")
    for p in points:
        print(
            f"{p['axis']:14}{p['value']:8}  "
            f"{p['way']:24}{p['seconds']:8.1f}{p['compile_seconds']:11.1f}"
        )
    content = {
        k: last[k] for k in ("commit", "device", "versions", "shape", "measured_flop_per_second")
    }
    base = {k: getattr(BASE, k) for k in ("shape", "pairs", "prompts", "features", "dtype")}
    c.out.mkdir(parents=True, exist_ok=True)
    name = f"scaling-{BASE.shape}-{last['device']['platform']}-{last['time']}.json"
    record = {
        "benchmark": "scaling",
        "schema_version": 1,
        "base": base,
        **content,
        "points": points,
    }
    (c.out / name).write_text(json.dumps(record, indent=2) + "\n")
    print(f"record   {c.out / name}")


if __name__ == "__main__":
    run(tyro.cli(Scaling))
