#!/usr/bin/env python3
"""Writes the figures of README.md, between its markers, from the newest records of its benchmarks.

python benchmarks/readme.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def demo(record: dict) -> str:
    """The markdown that a record of the demo makes."""
    s, sec, ratio, summary = record["shapes"], record["seconds"], record["ratio"], record["summary"]
    fit, gap = summary["fits"]["all"]["test"], summary["categories"]["religious stereotyping"]
    others = [c for name, c in summary["categories"].items() if c["refused"] > 0.5]
    auc, first, flags = summary["planted_pairs_auc"], summary["first_order"], summary["flags"]

    def row(name: str, key: str) -> str:
        return (
            f"| {name} | "
            + " | ".join(f"{auc[c][key]:.2f}" for c in ("harmful_refusal", "harmless_compliance"))
            + " |"
        )

    size = f"{s['pairs']} pairs, {s['prompts']} prompts, {s['features']} features"
    lines = [
        f"What `./scripts/demo` finds on the embedded model ({size}):",
        "",
        f"- The policy predicts Y with R² {fit['r2']:.2f} and refusals with accuracy "
        f"{fit['accuracy']:.2f} "
        f"(majority {fit['majority']:.2f}) on held-out prompts.",
        f"- The planted gap shows: religious stereotyping has mean Y {gap['y']:.1f} nats "
        f"(policy {gap['prediction']:.1f}), "
        f"the other harm categories {min(c['y'] for c in others):.1f} to "
        f"{max(c['y'] for c in others):.1f}.",
        f"- First order holds: R² against the true step, {first['pairs']} pairs in float64, is "
        f"{first['r2_delta_y']:.6f} for "
        f"ΔY and {first['r2_delta_w']:.6f} for ΔW.",
        f"- {flags['by_mean_delta_y']} pairs move the behaviour as the other class does "
        "(`flagged_delta_y`): "
        f"{flags['planted_by_mean_delta_y']} of the {flags['planted']} corrupted ones are among "
        "them. By score, as the paper "
        f"flags, {flags['by_score']} would be.",
        "- The corrupted pairs are found with these AUCs, each figure oriented as the paper "
        "flags misaligned pairs (low is "
        "suspicious in the refusal class, high in the other; a high off-target share in both):",
        "",
        "| | harmful_refusal | harmless_compliance |",
        "|---|---|---|",
        row("score", "score"),
        row("mean ΔY", "mean_delta_y"),
        row("off-target share", "off_target_share"),
        "",
        "  An AUC near 0 separates as well as one near 1, the other way round: Y is a negative "
        "log-probability and the policy "
        "has no intercept, so a step that raises refusals shrinks the policy, and its score is "
        "negative.",
        "",
        f"Against the PyTorch loop on the same files ({record['device']['platform']}, "
        f"{record['precision']}, one run; the loop "
        f"measured on {sec['loop_pairs_measured']} pairs): {ratio['loop_to_engine_warm']:.1f} "
        "times its speed warm, "
        f"{ratio['loop_to_command_cold']:.1f} times for the whole command cold, imports and "
        "compilation included "
        f"({sec['command_cold']:.0f} s; {sec['command_with_programs_kept']:.0f} s once its "
        "programs have been compiled).",
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


if __name__ == "__main__":
    path = ROOT / "README.md"
    text = path.read_text()
    for name, content in blocks().items():
        marked = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
        text = re.sub(
            rf"<!-- {name} -->\n.*?<!-- /{name} -->",
            lambda _, marked=marked: marked,
            text,
            flags=re.S,
        )
    path.write_text(text)
