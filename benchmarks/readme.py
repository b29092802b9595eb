#!/usr/bin/env python3
"""Writes the figures of README.md and docs, between their markers, from the newest records.

python benchmarks/readme.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def demo(record: dict) -> str:
    """The markdown that a record of the demo makes; the findings are those of the page."""
    s, sec, ratio = record["shapes"], record["seconds"], record["ratio"]
    size = f"{s['pairs']} pairs, {s['prompts']} prompts, {s['features']} features"
    how = f"{record['device']['platform']}, {record['precision']}, one run"
    lines = [
        f"What `./scripts/demo` finds on the embedded model ({size}):",
        "",
        *(f"- {sentence}" for sentence in record["findings"]),
        "",
        f"Against the PyTorch loop on the same files ({how}; the loop measured on "
        f"{sec['loop_pairs_measured']} pairs): {ratio['loop_to_engine_warm']:.1f} times its speed "
        f"warm, {ratio['loop_to_command_cold']:.1f} times for the whole command cold, imports and "
        f"compilation included ({sec['command_cold']:.0f} s; "
        f"{sec['command_with_programs_kept']:.0f} s once its programs have been compiled).",
    ]
    return "\n".join(lines)


def attribution(record: dict) -> str:
    """The markdown that a record of the engines makes."""
    s, shape, per_pair = record["settings"], record["shape"], record["seconds_per_pair"]
    loop, tuned = per_pair["PyTorch loop"], per_pair["PyTorch loop, tuned"]
    lines = [
        f"Hidden {shape['hidden']}, {shape['layers']} layers, random weights, {s['pairs']} "
        "pairs of 100 to 250 tokens, "
        f"{s['prompts']} prompts of 50 to 95, {s['features']} features, of which "
        f"{record['active_per_prompt']:.0f} are active "
        f"on a prompt; {record['device']['platform']} ({record['device']['machine']}), "
        f"{s['dtype']}, one run, without "
        "compilation. "
        "Agreement was checked first. Rows with a star were measured on a few pairs and "
        "multiplied up.",
        "",
        "| | seconds | times the loop | times the tuned loop | share of the matmul rate |",
        "|---|---|---|---|---|",
    ]
    rows = [(name, r["seconds"], r["flop"]) for name, r in record["engines"].items()]
    rows += [(f"{name} *", seconds * s["pairs"], None) for name, seconds in per_pair.items()]
    for name, seconds, flop in rows:
        share = "" if flop is None else f"{flop / seconds / record['measured_flop_per_second']:.0%}"
        ratios = (f"{v * s['pairs'] / seconds:.1f}" for v in (loop, tuned))
        lines.append(f"| {name} | {seconds:,.0f} | {' | '.join(ratios)} | {share} |")
    return "\n".join(lines)


def sweep(record: dict) -> str:
    """The markdown that a record of sweeps makes."""
    s, sec = record["settings"], record["seconds"]
    size = f"{s['pairs']} pairs, {s['prompts']:,} prompts and {s['features']} features"
    return (
        f"At {size} ({record['device']['platform']}, one run), {record['cells']:,} cells over "
        f"{s['weightings']} resamples take "
        f"{sec['sweep']:.0f} s, of which adding up the sums takes {sec['sweep_adding_up']:.0f} "
        "s; the intervals of every shift "
        f"from {s['resamples']:,} resamples take {sec['resamples']:.0f} s."
    )


def newest(name: str) -> dict:
    """The newest record of a benchmark."""
    records = (ROOT / "benchmarks" / "results").glob(f"{name}-*.json")
    return json.loads(max(records, key=lambda p: p.name.rsplit("-", 2)[1:]).read_text())


def blocks() -> dict[str, str]:
    """What stands between the markers, by the markers' name."""
    return {
        "demo": demo(newest("demo")),
        "attribution": attribution(newest("attribution-cpu")),
        "sweep": sweep(newest("sweep")),
    }


FILES = ("README.md", "docs/engines.md", "docs/sweeps.md")


def texts() -> str:
    """The files with marked blocks, one after the other."""
    return "\n".join((ROOT / name).read_text() for name in FILES)


if __name__ == "__main__":
    for file in FILES:
        path = ROOT / file
        text = path.read_text()
        for name, content in blocks().items():
            marked = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
            pattern = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
            text = re.sub(pattern, lambda _, marked=marked: marked, text, flags=re.S)
        path.write_text(text)
