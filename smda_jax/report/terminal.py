"""What a run found, as tables on the terminal."""

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from smda_jax.runs.attribution.summary import Summary


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in columns:
        words = name in ("subset", "label", "category", "pair", "class", "prompt")
        table.add_column(
            name, justify="left" if words else "right", no_wrap=name not in ("label", "prompt")
        )
    return table


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _figure(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:{form}}"


def print_summary(s: Summary, console: Console, top: int = 5) -> None:
    """Policy fit, strongest coefficients, gaps by category, pairs that move the policy most,
    pathway shares by class."""
    console.print(
        f"{len(s.pair_ids)} pairs, {s.prompts} prompts, {len(s.feature_ids)} features read from "
        f"{s.site} "
        f"(encoder {s.encoder}, gate {s.gate}, engine {s.engine})"
    )
    fit = _table(
        "Policy fit, held-out prompts",
        "subset",
        "prompts",
        "held out",
        "α",
        "accuracy",
        "majority",
        "F1",
        "R²",
        "ρ",
    )
    for name, f in s.fits.items():
        held = f["test"]["prompts"] if f["test"] else 0
        test = f["test"] or {}  # how it does where it was fitted says little
        figures = (
            _figure(test.get(k), ".2f") for k in ("accuracy", "majority", "f1", "r2", "spearman")
        )
        fit.add_row(name, str(held + f["train"]["prompts"]), str(held), f"{f['alpha']:g}", *figures)
    console.print(fit)

    sure = None if s.confidence is None else s.confidence.coefficients
    strongest = _table(
        "Strongest coefficients (positive: the behaviour is likelier)",
        "feature",
        "W",
        *["95 %", "sign"] * bool(sure),
        "label",
    )
    for k in np.argsort(-np.abs(s.weights))[: 2 * top]:
        how = (
            ()
            if sure is None
            else (f"{sure.low[k]:+.2f} … {sure.high[k]:+.2f}", f"{sure.sign_stability[k]:.0%}")
        )
        strongest.add_row(
            str(s.feature_ids[k]), f"{s.weights[k]:+.3f}", *how, _one_line(s.feature_labels[k])
        )
    console.print(strongest)

    if len(s.gaps) > 1:
        gaps = _table(
            "Categories: mean log-probability Y of the behaviour; gap: from the label's other "
            "prompts",
            *("category", "prompts", "refused", "mean Y", "policy", "gap", "95 %"),
        )
        for g in s.gaps:
            between = (
                f"{g.interval.low[2]:+.2f} … {g.interval.high[2]:+.2f}"
                if np.isfinite(g.gap)
                else "–"
            )
            gaps.add_row(
                escape(g.category),
                str(g.prompts),
                f"{g.refused:.0%}",
                f"{g.y:.2f}",
                f"{g.prediction:.2f}",
                _figure(g.gap, "+.2f"),
                between,
            )
        console.print(gaps)

    order = np.argsort(s.score)
    for title, rows in (
        (
            "Pairs that move the policy furthest along itself",
            [i for i in order[::-1][:top] if s.score[i] > 0],
        ),
        ("… and against itself", [i for i in order[:top] if s.score[i] < 0]),
    ):
        if not rows:
            continue
        table = _table(title, "pair", "class", "score", "mean ΔY", "feature", "off", "prompt")
        for i in rows:
            table.add_row(
                s.pair_ids[i][:8],
                s.pair_labels[i] or "–",
                f"{s.score[i]:+.2e}",
                _figure(float(s.mean_delta_y[i]), "+.2e"),
                "–" if s.dominant is None else str(s.dominant[i]),
                _figure(float(s.off_target[i]), ".0%"),
                _one_line(s.pair_texts[i]),
            )
        console.print(table)

    shares = _table(
        "Pathways by class", "class", "pairs", "median", "mean ΔY", "through X", "through Y", "off"
    )
    for name, c in s.classes().items():
        shares.add_row(
            name,
            str(c["pairs"]),
            f"{c['median_score']:+.2e}",
            _figure(c["mean_delta_y"], "+.2e"),
            *(_figure(c[k], ".0%") for k in ("delta_x_share", "delta_y_share", "off_target_share")),
        )
    console.print(shares)
    for name, test in s.geometry.items():
        if np.isfinite(test.spearman):
            what = name.replace("_", " ")
            console.print(
                f"Shifts of two features against their {what}: ρ {test.spearman:+.2f}, p "
                f"{test.p:.3f} (Mantel)"
            )

    known = (
        f", {s.flags['planted_by_mean_delta_y']} of the {s.flags['planted']} planted ones"
        if s.flags["planted"]
        else ""
    )
    by_dy = (
        "not known of scores alone"
        if s.flags["by_mean_delta_y"] is None
        else f"{s.flags['by_mean_delta_y']}"
    )
    by_dy += "" if s.flags["by_mean_delta_y"] is None else f" (flagged by mean ΔY{known})"
    console.print(
        f"Pairs that move the behaviour as the other class does: {by_dy}; by score, as the "
        f"paper flags: {s.flags['by_score']}",
        soft_wrap=True,
    )
    if s.auc:
        found = _table(
            "Finding the corrupted pairs: AUC within class",
            "class",
            "score",
            "mean ΔY",
            "off-target share",
        )
        for name, a in s.auc.items():
            found.add_row(
                name, *(_figure(a.get(k)) for k in ("score", "mean_delta_y", "off_target_share"))
            )
        console.print(found)
        console.print(
            "An AUC near 0 separates as well as one near 1: the figure then points the other way "
            "than the paper's flags."
        )
    if s.first_order:
        names = {
            "r2_delta_y": "ΔY",
            "r2_delta_x": "ΔX",
            "r2_delta_w": "ΔW",
            "r2_score": "the score",
        }
        figures = ", ".join(
            f"{s.first_order[key]:.6f} of {name}"
            for key, name in names.items()
            if key in s.first_order
        )
        console.print(
            f"First order against the true step, {s.first_order['pairs']:.0f} pairs in float64: "
            f"R² {figures}"
        )
    console.print(
        "off: share of Σ|W·ΔW| that falls on features not active on the pair's own prompt"
    )
    console.print(f"Run folder: {escape(s.out)}", soft_wrap=True)
