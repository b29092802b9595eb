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


def decisions(record: dict) -> str:
    """The markdown that a record of acting on the demo makes."""
    e, v = record["experiment"], record["validation"]
    arms = e["arms"]
    controls = [own for name, own in arms.items() if name.startswith("control")]
    f1 = next(d for d in e["differences"] if d["metric"] == "f1")
    rate = f"{e['recipe']['optimiser']} at {e['recipe']['learning_rate']:g}"
    verdict = "works" if f1["low"] > 0 else "does not beat leaving out random pairs"
    lines = [
        f"**Acting on the flags {verdict}** (`./scripts/demo --validate`; {rate}, "
        f"{arms['curated']['orders']} orders each):",
        "",
        "| trained on | pairs | soft F1 |",
        "|---|---|---|",
        f"| nothing | 0 | {arms['base']['f1']:.3f} |",
        f"| all pairs | {arms['full']['pairs']} | {arms['full']['f1']:.3f} |",
        f"| without the {e['removed']} flagged by mean ΔY ({e['planted_removed']} of the "
        f"{e['planted']} planted among them) | {arms['curated']['pairs']} | "
        f"**{arms['curated']['f1']:.3f}** |",
        f"| without {e['removed']} random ones of the same labels, {len(controls)} draws | "
        f"{controls[0]['pairs']} | {f1['control']:.3f} |",
        "",
        f"Curated less random: {f1['value']:+.3f} (95 %: {f1['low']:+.3f} … {f1['high']:+.3f}). "
        "And how well the figures say what training does (the authors' recipe on "
        f"{v['subsets']} random halves; rank correlation, ceiling in brackets):",
        "",
        "| | mean Y | coefficients: median | worst | planted pairs, AUPRC |",
        "|---|---|---|---|---|",
    ]
    names = ("mean_y", "coefficient median", "coefficient worst")
    words = {
        "adamw": "`--recipe adamw-2e-5x3`, the default",
        "sgd": "one plain step",
        "gradient_cosine": "gradient cosine",
        "bm25": "BM25",
        "random": "random",
    }
    for figure, said in words.items():
        cells = [f"{v['lds'][figure][t][0]:.2f} ({v['lds'][figure][t][3]:.2f})" for t in names]
        lines.append(f"| {said} | {' | '.join(cells)} | {v['planted_auprc'][figure][0]:.2f} |")
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
        "decisions": decisions(newest("decisions")),
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
