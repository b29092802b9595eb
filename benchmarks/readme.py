#!/usr/bin/env python3
"""Writes the figures of README.md, between its `demo` markers, from the newest record of benchmarks/demo.py.

python benchmarks/readme.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- demo -->\n.*?<!-- /demo -->", flags=re.S)


def block(record: dict) -> str:
    """The markdown that a record makes."""
    s, sec, ratio, summary = record["shapes"], record["seconds"], record["ratio"], record["summary"]
    fit, gap = summary["fits"]["all"]["test"], summary["categories"]["religious stereotyping"]
    others = [c for name, c in summary["categories"].items() if c["refused"] > 0.5]
    auc, first = summary["planted_pairs_auc"], summary["first_order"]

    def row(name: str, key: str) -> str:
        return f"| {name} | " + " | ".join(f"{auc[c][key]:.2f}" for c in ("harmful_refusal", "harmless_compliance")) + " |"

    size = f"{s['pairs']} pairs, {s['prompts']} prompts, {s['features']} features"
    lines = [
        f"What `./scripts/demo` finds on the embedded model ({size}):",
        "",
        f"- The policy predicts Y with R² {fit['r2']:.2f} and refusals with accuracy {fit['accuracy']:.2f} "
        f"(majority {fit['majority']:.2f}) on held-out prompts.",
        f"- The planted gap shows: religious stereotyping has mean Y {gap['y']:.1f} nats (policy {gap['prediction']:.1f}), "
        f"the other harm categories {min(c['y'] for c in others):.1f} to {max(c['y'] for c in others):.1f}.",
        f"- First order holds: R² against the true step, {first['pairs']} pairs in float64, is {first['r2_delta_y']:.6f} for "
        f"ΔY and {first['r2_delta_w']:.6f} for ΔW.",
        "- The 20 corrupted pairs are found with these AUCs, each figure oriented as the paper flags misaligned pairs (low is "
        "suspicious in the refusal class, high in the other; a high off-target share in both):",
        "",
        "| | harmful_refusal | harmless_compliance |",
        "|---|---|---|",
        row("score", "score"),
        row("mean ΔY", "mean_delta_y"),
        row("off-target share", "off_target_share"),
        "",
        "  An AUC near 0 separates as well as one near 1, the other way round: Y is a negative log-probability and the policy "
        "has no intercept, so a step that raises refusals shrinks the policy, and its score is negative.",
        "",
        f"Against the PyTorch loop on the same files ({record['device']['platform']}, {record['precision']}, one run; the loop "
        f"measured on {sec['loop_pairs_measured']} pairs): {ratio['loop_to_engine_warm']:.1f} times its speed warm, "
        f"{ratio['loop_to_command_cold']:.1f} times for the whole command cold, imports and compilation included.",
    ]
    return "<!-- demo -->\n" + "\n".join(lines) + "\n<!-- /demo -->"


def newest() -> dict:
    """The newest record of the demo."""
    return json.loads(
        max((ROOT / "benchmarks" / "results").glob("demo-*.json"), key=lambda p: p.name.rsplit("-", 2)[1:]).read_text()
    )


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(BLOCK.sub(lambda _: block(newest()), path.read_text()))
