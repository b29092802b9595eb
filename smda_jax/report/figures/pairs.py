"""Figures of the pairs."""

import numpy as np
from matplotlib.figure import Figure

from smda_jax.report.data import Run
from smda_jax.report.figures.style import (
    MARKERS,
    PALETTE,
    heat,
    new_figure,
    plain,
    scale_of,
)


def effects(run: Run) -> Figure | None:
    """W·ΔW of pairs and features, by pathway; None where only scores were kept."""
    if not run.contribution:
        return None
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    x, y = (run.contribution[k][np.ix_(run.pair_order, run.feature_order)] for k in ("x", "y"))
    top, ids = scale_of(x + y, 0.98), [run.features()["feature_id"][k] for k in run.feature_order]
    label = [
        run.tables["pairs.parquet"]["label"][i] or "unlabelled" for i in run.shown[run.pair_order]
    ]
    starts = [i for i, name in enumerate(label) if not i or name != label[i - 1]]
    titles = ("through activations", "through probabilities", "both")
    for axes, values, title in zip(
        figure.subplots(1, 3, sharey=True), (x, y, x + y), titles, strict=True
    ):
        heat(axes, values, top, title, ids)
        axes.set_xlabel("feature")
        for start in starts[1:]:
            axes.axhline(start - 0.5, color="black", lw=0.8)
    middle = [(a + b) / 2 for a, b in zip(starts, [*starts[1:], len(label)], strict=True)]
    figure.axes[0].set_yticks(
        middle, [plain(label[i], 24) for i in starts], rotation=90, va="center", fontsize=8
    )
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, shrink=0.7, label="W·ΔW")
    return figure


def pathways(run: Run) -> Figure | None:
    """Score through activations against score through probabilities."""
    if not run.contribution:
        return None
    figure, axes = new_figure(5.0, 4.5)
    x, y = (run.contribution[k].sum(axis=1) for k in ("x", "y"))
    label = np.array([run.tables["pairs.parquet"]["label"][i] or "unlabelled" for i in run.shown])
    for i, name in enumerate(run.classes):
        in_class = label == name
        axes.scatter(
            x[in_class],
            y[in_class],
            s=14,
            alpha=0.8,
            color=PALETTE[i % 6],
            marker=MARKERS[i % 6],
            label=plain(name),
        )
    axes.axline((0, 0), slope=-1, color="grey", lw=0.8, ls=":")
    axes.set_xlabel("score through feature activations")
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylabel("score through output probabilities")
    axes.legend(frameon=False, fontsize=8)
    return figure


def landing(run: Run) -> Figure | None:
    """Where the shifts of each class and category of pairs land; None without them."""
    table = run.tables.get("landing.parquet")
    if not table or not table["group"]:
        return None
    groups, ids = (
        list(dict.fromkeys(zip(table["kind"], table["group"], strict=True))),
        run.features()["feature_id"],
    )
    rows: dict[str, list[str]] = {}
    for kind, name in groups:
        rows.setdefault(kind, []).append(name)
    figure = Figure(figsize=(8, 1.5 + 0.22 * len(groups)), layout="constrained")
    every = np.array(table["share"], float).reshape(-1, len(ids))[:, run.feature_order]
    panels, start = (
        np.ravel(
            figure.subplots(len(rows), 1, height_ratios=[len(names) for names in rows.values()])
        ),
        0,
    )
    for axes, (kind, names) in zip(panels, rows.items(), strict=True):
        rows_of_kind = every[start : start + len(names)]
        start += len(rows_of_kind)
        axes.imshow(
            rows_of_kind,
            aspect="auto",
            cmap="Blues",
            vmin=0,
            vmax=float(np.nanmax(every)),
            interpolation="nearest",
        )
        axes.set_yticks(range(len(rows_of_kind)), [plain(name, 30) for name in names], fontsize=7)
        axes.set_title(f"by {kind}", fontsize=9)
        axes.set_xticks([])
    if len(ids) <= 80:
        panels[-1].set_xticks(
            range(len(ids)), [str(ids[k]) for k in run.feature_order], rotation=90, fontsize=6
        )
    panels[-1].set_xlabel("feature")
    figure.colorbar(
        figure.axes[0].images[0], ax=figure.axes, shrink=0.8, label="share of a pair's Σ|W·ΔW|"
    )
    return figure


def scores(run: Run) -> Figure | None:
    """Scores of each class."""
    pairs = run.tables["pairs.parquet"]
    score, label = np.array(pairs["score"]), np.array([x or "unlabelled" for x in pairs["label"]])
    figure, axes = new_figure(6.0, 3.5)
    edges = np.histogram_bin_edges(score, 50).tolist()
    for i, name in enumerate(run.classes):
        in_class = score[label == name]
        axes.hist(in_class, edges, alpha=0.6, color=PALETTE[i % 6], label=plain(name))
        axes.axvline(float(np.median(in_class)), color=PALETTE[i % 6], ls="--")
    axes.set_xlabel("score (dashed: medians)")
    axes.set_ylabel("pairs")
    axes.legend(frameon=False, fontsize=8)
    return figure
