#!/usr/bin/env python3
"""Sweeps and intervals at the paper's size, on random arrays: seconds for 10,000 cells and for
1,000 resamples.

    python benchmarks/sweep.py

The cells are 100 penalties on each of 100 resamples of the prompts; the first weighting and the
first pair are timed apart, for they compile.
"""

import json
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import tyro
from shapes import ROOT, commit  # type: ignore[import-not-found]

from smda_jax.policy.bootstrap import refit, resamples, shifts
from smda_jax.policy.sums import Cells, accumulate, answer


@dataclass(frozen=True)
class Benchmark:
    """Sizes."""

    pairs: int = 200
    prompts: int = 5000
    features: int = 75
    weightings: int = 100
    penalties: int = 100
    resamples: int = 1000
    at_a_time: int = 25
    """Weightings whose sums are held together."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the record."""


def main(b: Benchmark) -> None:
    """Times, prints, writes the record."""
    r = np.random.default_rng(0)
    X = np.maximum(r.normal(size=(b.prompts, b.features)), 0)
    Y = r.normal(size=b.prompts)
    dX = r.normal(size=(b.pairs, b.prompts, b.features)).astype(np.float32) * (X > 0)
    dY = r.normal(size=(b.pairs, b.prompts)).astype(np.float32)
    weights = resamples(b.prompts, b.weightings, 0)
    no = np.zeros(b.penalties, bool)
    cells = Cells(np.logspace(-2, 3, b.penalties), np.ones((b.penalties, b.features), bool), no, no)
    seconds = {}
    start = time.perf_counter()
    answer(accumulate(X, Y, dX, dY, weights[: b.at_a_time]).at(0), cells)
    seconds["first"] = time.perf_counter() - start
    start, adding = time.perf_counter(), 0.0
    for i in range(0, b.weightings, b.at_a_time):
        begun = time.perf_counter()
        sums = accumulate(X, Y, dX, dY, weights[i : i + b.at_a_time])
        adding += time.perf_counter() - begun
        for j in range(len(sums.n)):
            answer(sums.at(j), cells)
    seconds |= {"sweep": time.perf_counter() - start, "sweep_adding_up": adding}
    drawn = resamples(b.prompts, b.resamples, 1)
    found = refit(X, Y, 5.0, drawn)
    for _ in shifts(X, found, dX[:1], dY[:1]):
        pass
    start = time.perf_counter()
    found = refit(X, Y, 5.0, drawn)
    for _ in shifts(X, found, dX, dY):
        pass
    seconds["resamples"] = time.perf_counter() - start
    record = {
        "benchmark": "sweep",
        "schema_version": 1,
        "commit": commit(),
        "settings": {k: v for k, v in asdict(b).items() if k != "out"},
        "cells": b.weightings * b.penalties,
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "machine": platform.machine(),
        },
        "versions": {name: version(name) for name in ("smda-jax", "jax")},
        "seconds": seconds,
    }
    b.out.mkdir(parents=True, exist_ok=True)
    path = b.out / f"sweep-{jax.default_backend()}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(
        f"{record['cells']} cells: {seconds['sweep']:.1f} s, of which sums {adding:.1f} s; the "
        f"first {seconds['first']:.1f} s"
    )
    print(f"{b.resamples} resamples of every shift: {seconds['resamples']:.1f} s")
    print(f"record   {path}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
