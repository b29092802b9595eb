"""Figures of what acting on a run came to, and of how good its figures are."""

import numpy as np
from matplotlib.figure import Figure

from smda_jax.report.data import Run
from smda_jax.report.figures.style import MARKERS, PALETTE, new_figure, plain

TARGETS = ("mean_y", "coefficient median", "coefficient worst", "category median")


def experiment(run: Run) -> Figure | None:
    """Soft F1 of every arm and order; None where nobody has trained."""
    table = run.tables.get("experiment/experiment.parquet")
    if not table:
        return None
    arm, f1 = np.array(table["arm"]), np.array(table["f1"])
    names = list(dict.fromkeys(table["arm"]))
    figure, axes = new_figure(6.0, 0.9 + 0.3 * len(names))
    for i, name in enumerate(names):
        kind = 2 if name == "curated" else 1 if name.startswith("control") else 0
        own = f1[arm == name]
        axes.scatter(own, [i] * len(own), color=PALETTE[kind], marker=MARKERS[kind], alpha=0.75)
        axes.plot([own.mean()] * 2, [i - 0.3, i + 0.3], color=PALETTE[kind], lw=2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("soft F1 after training; a mark for each order, a bar at the mean")
    return figure


def validation(run: Run) -> Figure | None:
    """LDS of every figure, with intervals and ceilings; None where nobody has looked."""
    table = run.tables.get("validation.parquet")
    if not table:
        return None
    rows = zip(*(table[k] for k in ("measure", "figure", "target")), strict=True)
    at = {key: i for i, key in enumerate(rows)}
    names = list(dict.fromkeys(f for m, f, _ in at if m == "lds"))
    targets = [t for t in TARGETS if ("lds", names[0], t) in at]
    figure = Figure(
        figsize=(2.4 * len(targets) + 1.6, 0.9 + 0.24 * len(names)), layout="constrained"
    )
    panels = np.atleast_1d(figure.subplots(1, len(targets), sharey=True))
    for i, (axes, target) in enumerate(zip(panels, targets, strict=True)):
        own = [at["lds", name, target] for name in names]
        value, low, high, top = (
            np.array([np.nan if table[k][row] is None else table[k][row] for row in own])
            for k in ("value", "low", "high", "reference")
        )
        axes.barh(range(len(names)), value, color=PALETTE[i])
        ends = [np.nan_to_num(np.maximum(side, 0)) for side in (value - low, high - value)]
        axes.errorbar(value, range(len(names)), xerr=ends, fmt="none", color="black", lw=0.7)
        if np.isfinite(top[0]):
            axes.axvline(top[0], color="grey", ls=":", lw=1.2)
        axes.axvline(0, color="black", lw=0.6)
        axes.set_title(target.replace("_", " "), fontsize=9)
        axes.set_xlim(-1, 1)
    panels[0].set_yticks(range(len(names)), [plain(name) for name in names], fontsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel("rank correlation with what training came to (dotted: ceiling)", fontsize=9)
    return figure
