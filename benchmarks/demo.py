#!/usr/bin/env python3
"""The demo against the PyTorch loop on the same files, in one run; writes a record to
benchmarks/results.

    python benchmarks/demo.py [--loop-pairs 5]

Both ways attribute the 200 embedded pairs to all embedded prompts. The whole command is timed cold
(imports, compilation, tables and all), the engine warm (median over blocks after the first), the
loop on a few pairs (median), which is multiplied up.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import torch
import tyro
from pytorch_loop import Loop
from shapes import ROOT, commit, sequences_of  # type: ignore[import-not-found]

import smda_jax as smda
from smda_jax.reading.tokens import tokenise_pairs
from smda_jax.report.data import read_run
from smda_jax.report.findings import findings
from smda_jax.runs.config import Demo
from smda_jax.steps.dataset import Stepping, steps_in_groups, steps_of
from smda_jax.steps.updates.contract import Update


@dataclass(frozen=True)
class Benchmark:
    """What to time."""

    loop_pairs: int = 5
    """Pairs that the loop is measured on."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the record."""


def main(benchmark: Benchmark) -> None:
    """Checks agreement, then times."""
    config = Demo().attribute()
    model = smda.load_model(config.model)
    prompts, pairs = smda.load_prompts(config.eval), smda.load_pairs(config.pairs)
    evaluation = smda.activations(
        model, smda.load_sae(config.sae), prompts, features=config.features
    )
    tokens = tokenise_pairs(model, pairs)
    loop = Loop(
        Path(config.model),
        evaluation.tokens,
        sequences_of(evaluation),
        evaluation.site.layer,
    )

    # A larger step than the demo's: in float32 the loop's differences would be rounding otherwise.
    some = tokens[: benchmark.loop_pairs]
    checked, _ = steps_of(Stepping(model, Update(1e-2)), some)
    _, dy, _ = loop.run(some, 1e-2)
    true = smda.finite(evaluation, checked)
    worst = float(np.abs(true.y - dy).max() / np.abs(dy).max())
    assert worst < 1e-3, f"the loop and the engine finite differ by {worst:.1e}"

    block = len(tokens)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        steps = steps_in_groups(Stepping(model, Update(config.step.learning_rate)), tokens)
        smda.reverse(evaluation, steps.groups)
        times.append(time.perf_counter() - start)
    engine = statistics.median(times[1:]) / block
    _, _, loop_times = loop.run(some, config.step.learning_rate)
    with tempfile.TemporaryDirectory() as folder:
        # Once without a compiled program, and once with those that the first left.
        own = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {
            "XDG_CACHE_HOME": folder
        }
        commands = []
        for out in ("cold", "kept"):
            start = time.perf_counter()
            words = [sys.executable, "-m", "smda_jax", "demo", "--out", f"{folder}/{out}"]
            subprocess.run(words, check=True, capture_output=True, env=own)
            commands.append(time.perf_counter() - start)
        command, kept = commands
        run = json.loads(Path(folder, "cold", "run.json").read_text())
        said = findings(read_run(Path(folder, "cold")))

    versions = {name: version(name) for name in ("smda-jax", "jax", "torch", "transformers")}
    per_pair = statistics.median(loop_times)
    record = {
        "benchmark": "demo",
        "schema_version": 1,
        "commit": commit(),
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "torch_threads": torch.get_num_threads(),
        },
        "versions": versions,
        "shapes": {
            "pairs": len(pairs),
            "prompts": len(prompts),
            "features": len(evaluation.feature_ids),
            "hidden": model.config.hidden,
            "layers": model.config.layers,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        },
        "precision": "float32",
        "summary": run["summary"],
        "findings": said,
        "agreement": {"finite_against_loop_delta_y": worst, "learning_rate": 1e-2},
        "seconds": {
            "loop_per_pair": per_pair,
            "loop_pairs_measured": len(some),
            "loop_all_pairs_extrapolated": per_pair * len(pairs),
            "engine_per_pair_warm": engine,
            "engine_block_times": times,
            "command_cold": command,
            "command_with_programs_kept": kept,
            "command_stages": run["timings"],
        },
        "ratio": {
            "loop_to_engine_warm": per_pair / engine,
            "loop_to_command_cold": per_pair * len(pairs) / command,
        },
    }
    benchmark.out.mkdir(parents=True, exist_ok=True)
    name = f"demo-{record['device']['platform']}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    (benchmark.out / name).write_text(json.dumps(record, indent=2) + "\n")
    print(
        f"loop     {per_pair:8.3f} s per pair, {per_pair * len(pairs):7.1f} s for {len(pairs)} "
        f"(extrapolated from {len(some)})"
    )
    print(
        f"engine   {engine:8.3f} s per pair, warm: {per_pair / engine:.1f} times the loop's speed"
    )
    print(
        f"command  {command:8.1f} s for all, cold: {per_pair * len(pairs) / command:.1f} times "
        "the loop's speed"
    )
    print(f"again    {kept:8.1f} s, with the compiled programs that the first run kept")
    print(f"record   {benchmark.out / name}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
