"""What a run found, as tables on the terminal; `findings` has the sentences."""

from collections.abc import Iterator

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from smda_jax.runs.attribution.summary import Summary

TOP = 5  # pairs, and half as many coefficients, that are shown
# Columns of words; all others hold numbers.
WORDS = ("subset", "label", "category", "pair", "class", "prompt")


def print_summary(s: Summary, console: Console) -> None:
    """Fit, strongest coefficients, gaps, pairs that move the policy most, pathways by class."""
    console.print(
        f"{len(s.pair_ids)} pairs, {s.prompts} prompts, {len(s.feature_ids)} features read from "
        f"{s.site} (encoder {s.encoder}, gate {s.gate}, engine {s.engine})"
    )
    for table in (_fits(s), _coefficients(s), *_gaps(s), *_pairs(s), _classes(s)):
        console.print(table)
    for name, test in s.geometry.items():
        if np.isfinite(test.spearman):
            what = name.replace("_", " ")
            figures = f"ρ {test.spearman:+.2f}, p {test.p:.3f} (Mantel)"
            console.print(f"Shifts of two features against their {what}: {figures}")
    off = "share of Σ|W·ΔW| that falls on features not active on the pair's own prompt"
    console.print(f"off: {off}")
    console.print(f"Run folder: {escape(s.out)}", soft_wrap=True)


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
        justify = "left" if name in WORDS else "right"
        table.add_column(name, justify=justify, no_wrap=name not in ("label", "prompt"))
    return table


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _figure(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:{form}}"


def _between(low: float, high: float) -> str:
    return f"{low:+.2f} … {high:+.2f}"


def _fits(s: Summary) -> Table:
    names = ("subset", "prompts", "held out", "α", "accuracy", "majority", "F1", "R²", "ρ")
    table = _table("Policy fit, held-out prompts", *names)
    for name, fit in s.fits.items():
        test = fit["test"] or {}  # how it does where it was fitted says little
        held = fit["test"]["prompts"] if fit["test"] else 0
        keys = ("accuracy", "majority", "f1", "r2", "spearman")
        figures = (_figure(test.get(key), ".2f") for key in keys)
        prompts = str(held + fit["train"]["prompts"])
        table.add_row(name, prompts, str(held), f"{fit['alpha']:g}", *figures)
    return table


def _coefficients(s: Summary) -> Table:
    sure = None if s.confidence is None else s.confidence.coefficients
    title = "Strongest coefficients (positive: Y is higher)"
    table = _table(title, "feature", "W", *["95 %", "sign"] * bool(sure), "label")
    for k in np.argsort(-np.abs(s.weights))[: 2 * TOP]:
        row = [str(s.feature_ids[k]), f"{s.weights[k]:+.3f}"]
        if sure is not None:
            row += [
                _between(float(sure.low[k]), float(sure.high[k])),
                f"{sure.sign_stability[k]:.0%}",
            ]
        table.add_row(*row, _one_line(s.feature_labels[k]))
    return table


def _gaps(s: Summary) -> Iterator[Table]:
    if len(s.gaps) < 2:
        return
    title = "Categories: mean Y of the behaviour; gap: from the label's others"
    names = ("category", "prompts", "show it", "mean Y", "policy", "gap", "95 %")
    table = _table(title, *names)
    for g in s.gaps:
        interval = _between(float(g.interval.low[2]), float(g.interval.high[2]))
        figures = (f"{g.shows:.0%}", f"{g.y:.2f}", f"{g.prediction:.2f}", _figure(g.gap, "+.2f"))
        known = interval if np.isfinite(g.interval.low[2]) else "–"
        table.add_row(escape(g.category), str(g.prompts), *figures, known)
    yield table


def _pairs(s: Summary) -> Iterator[Table]:
    order = np.argsort(s.score)
    along = [i for i in order[::-1][:TOP] if s.score[i] > 0]
    against = [i for i in order[:TOP] if s.score[i] < 0]
    titles = ("Pairs that move the policy furthest along itself", "… and against itself")
    names = ("pair", "class", "score", "mean ΔY", "feature", "off", "prompt")
    for title, rows in zip(titles, (along, against), strict=True):
        if not rows:
            continue
        table = _table(title, *names)
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
        yield table


def _classes(s: Summary) -> Table:
    names = ("class", "pairs", "median", "mean ΔY", "through X", "through Y", "off")
    table = _table("Pathways by class", *names)
    for name, c in s.classes().items():
        shares = (c[key] for key in ("delta_x_share", "delta_y_share", "off_target_share"))
        figures = (f"{c['median_score']:+.2e}", _figure(c["mean_delta_y"], "+.2e"))
        table.add_row(name, str(c["pairs"]), *figures, *(_figure(v, ".0%") for v in shares))
    return table
