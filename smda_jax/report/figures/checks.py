"""Figures of how far a run can be trusted, and of its time."""

import numpy as np
from matplotlib.figure import Figure

from smda_jax.report.data import Run
from smda_jax.report.figures.style import (
    MARKERS,
    PALETTE,
    new_figure,
    plain,
)


def agreement(run: Run) -> Figure | None:
    """Rank correlations of the figures of a pair; None where nothing was compared."""
    table = run.tables["agreement.parquet"]
    names = list(dict.fromkeys([*table["figure"], *table["other"]]))
    if not names:
        return None
    among = list(dict.fromkeys(table["class"]))
    figure = Figure(figsize=(3.2 * len(among) + 1, 4.2), layout="constrained")
    for axes, group in zip(
        np.atleast_1d(figure.subplots(1, len(among), sharey=True)), among, strict=True
    ):
        values = np.eye(len(names))
        for where, a, b, rho in zip(
            *(table[k] for k in ("class", "figure", "other", "spearman")), strict=True
        ):
            if where == group:
                i, j = names.index(a), names.index(b)
                values[i, j] = values[j, i] = np.nan if rho is None else rho
        axes.imshow(values, cmap="PuOr", vmin=-1, vmax=1)
        words = [name.replace("_", " ") for name in names]
        axes.set_xticks(range(len(names)), words, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), words, fontsize=7)
        axes.set_title(plain(group), fontsize=9)
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, shrink=0.7, label="Spearman's ρ")
    return figure


def verify(run: Run) -> Figure | None:
    """Predicted against true steps; None where none were taken."""
    table = run.tables.get("verify_points.parquet")
    if table is None:
        return None
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    eta, kind, predicted, true = (
        np.array(table[k]) for k in ("learning_rate", "figure", "predicted", "true")
    )
    for axes, name in zip(figure.subplots(1, 2), ("score", "mean_delta_y"), strict=True):
        for i, rate in enumerate(np.unique(eta)):
            at_rate = (eta == rate) & (kind == name)
            axes.scatter(
                predicted[at_rate] / rate,
                true[at_rate] / rate,
                s=14,
                color=PALETTE[i % 6],
                marker=MARKERS[i % 6],
                label=f"η = {rate:g}",
            )
        axes.axline((0, 0), slope=1, color="grey", lw=0.8, ls=":")
        axes.set_xlabel("predicted, over η")
        axes.set_title(name.replace("_", " "), fontsize=9)
    figure.axes[0].set_ylabel("true, over η")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def timings(run: Run) -> Figure | None:
    """Seconds of every stage; None where they were not kept."""
    stages = run.record.get("timings")
    if not stages:
        return None
    figure, axes = new_figure(6.0, 0.8 + 0.25 * len(stages))
    axes.barh([plain(name) for name in stages][::-1], list(stages.values())[::-1], color=PALETTE[0])
    axes.set_xlabel("seconds, compilation included")
    return figure
