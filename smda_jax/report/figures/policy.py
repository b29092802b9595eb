"""Figures of the policy and its features."""

import numpy as np
from matplotlib.figure import Figure

from smda_jax.report.data import Run
from smda_jax.report.figures.style import (
    PALETTE,
    heat,
    names_of,
    new_figure,
    plain,
)


def coefficients(run: Run) -> Figure | None:
    """The strongest coefficients, with their intervals; None without features."""
    f = run.features()
    if not f:
        return None
    W = np.array(f["weight"])
    order = np.argsort(-np.abs(W))[:40][::-1]
    figure, axes = new_figure(6.5, 0.9 + 0.2 * len(order))
    sides = None
    if "weight_low" in f:
        sides = np.maximum(
            np.stack([W - np.array(f["weight_low"]), np.array(f["weight_high"]) - W]), 0
        )[:, order]
    axes.barh(
        np.arange(len(order)),
        W[order],
        color=[PALETTE[0] if w > 0 else PALETTE[5] for w in W[order]],
    )
    axes.errorbar(W[order], np.arange(len(order)), xerr=sides, fmt="none", ecolor="black", lw=0.8)
    axes.set_yticks(np.arange(len(order)), [names_of(f)[k] for k in order], fontsize=7)
    axes.set_xlabel(f"W, {run.unit} per unit of activation (bars: 95 %)")
    return figure


def gaps(run: Run) -> Figure | None:
    """Gap of every category, and what of it the policy knows; None without categories."""
    g = run.tables["gaps.parquet"]
    rows = [i for i, gap in enumerate(g["gap"]) if gap is not None][:40]
    if not rows:
        return None
    gap, low, high = (
        np.array([g[k][i] for i in rows], float) for k in ("gap", "gap_low", "gap_high")
    )
    figure, axes = new_figure(6.5, 0.9 + 0.28 * len(rows))
    axes.errorbar(
        gap,
        np.arange(len(rows)),
        xerr=np.nan_to_num(np.maximum([gap - low, high - gap], 0)),
        fmt="D",
        color="black",
        capsize=3,
    )
    carried = {name: 0.0 for name in g["category"]}
    for name, value in zip(
        *(run.tables["gap_features.parquet"][k] for k in ("category", "carried")), strict=True
    ):
        carried[name] += value or 0
    axes.barh(
        np.arange(len(rows)),
        [carried[g["category"][i]] for i in rows],
        color=PALETTE[0],
        alpha=0.5,
        label="the policy's",
    )
    axes.set_yticks(np.arange(len(rows)), [plain(g["category"][i]) for i in rows], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", lw=0.6)
    axes.set_xlabel(f"mean Y less that of the label's other prompts, {run.unit} (95 %)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def interference(run: Run) -> Figure | None:
    """How alike features shift, and how alike their directions are."""
    table = run.tables.get("interference.parquet")
    if table is None:
        return None
    n = len(set(table["feature_id"]))
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("co_shift", "encoder_cosine"), strict=True):
        values, ids = np.array(table[key], float).reshape(n, n), np.array(table["other_id"][:n])
        if n == len(run.feature_order):
            values, ids = (
                values[np.ix_(run.feature_order, run.feature_order)],
                ids[run.feature_order],
            )
        heat(
            axes,
            np.where(np.eye(n, dtype=bool), np.nan, values),
            1.0,
            key.replace("_", " "),
            ids.tolist(),
        )
        axes.set_xlabel("feature")
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, shrink=0.8)
    return figure
