"""The figures of the page for a paper: PNG and PDF, by matplotlib."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smda_jax.files import writing
from smda_jax.report.data import Columns, Run

PALETTE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
)  # Okabe and Ito: told apart by everyone
MARKERS = "oDs^PX"


def draw(run: Run, folder: Path) -> Iterator[Path]:
    """Writes every figure that the run has data for → their paths."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, make in FIGURES.items():
        figure = make(run)
        if figure is None:
            continue
        for suffix in ("png", "pdf"):
            path = folder / f"{name}.{suffix}"
            with writing(path):
                figure.savefig(path, dpi=200)
            yield path


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain(text: object, most: int = 40) -> str:
    # A dollar sign would start a formula.
    word = str(text).replace("$", r"\$").replace("\n", " ")
    return word if len(word) <= most else word[: most - 1] + "…"


def _names(features: Columns) -> list[str]:
    return [
        _plain(f"{i} {label}" if label else i)
        for i, label in zip(features["feature_id"], features["label"], strict=True)
    ]


def _coefficients(run: Run) -> Figure | None:
    f = run.features()
    if not f:
        return None
    W = np.array(f["weight"])
    order = np.argsort(-np.abs(W))[:40][::-1]
    figure, axes = _figure(6.5, 0.9 + 0.2 * len(order))
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
    axes.set_yticks(np.arange(len(order)), [_names(f)[k] for k in order], fontsize=7)
    axes.set_xlabel("W, nats per unit of activation (bars: 95 %)")
    return figure


def _gaps(run: Run) -> Figure | None:
    g = run.tables["gaps.parquet"]
    rows = [i for i, gap in enumerate(g["gap"]) if gap is not None][:40]
    if not rows:
        return None
    gap, low, high = (
        np.array([g[k][i] for i in rows], float) for k in ("gap", "gap_low", "gap_high")
    )
    figure, axes = _figure(6.5, 0.9 + 0.28 * len(rows))
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
    axes.set_yticks(np.arange(len(rows)), [_plain(g["category"][i]) for i in rows], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", lw=0.6)
    axes.set_xlabel("mean Y less that of the label's other prompts, nats (95 %)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _heat(
    axes: Axes, values: np.ndarray, top: float, title: str, columns: Sequence[object]
) -> None:
    axes.imshow(values, cmap="PuOr", vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    if len(columns) <= 80:
        axes.set_xticks(range(len(columns)), [str(c) for c in columns], rotation=90, fontsize=5)


def _scale(values: np.ndarray, quantile: float) -> float:
    known = np.abs(values[np.isfinite(values)])
    return (float(np.quantile(known, quantile)) if known.size else 0.0) or 1.0


def _effects(run: Run) -> Figure | None:
    if not run.contribution:
        return None
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    x, y = (run.contribution[k][np.ix_(run.pair_order, run.feature_order)] for k in ("x", "y"))
    top, ids = _scale(x + y, 0.98), [run.features()["feature_id"][k] for k in run.feature_order]
    label = [
        run.tables["pairs.parquet"]["label"][i] or "unlabelled" for i in run.shown[run.pair_order]
    ]
    starts = [i for i, name in enumerate(label) if not i or name != label[i - 1]]
    titles = ("through activations", "through probabilities", "both")
    for axes, values, title in zip(
        figure.subplots(1, 3, sharey=True), (x, y, x + y), titles, strict=True
    ):
        _heat(axes, values, top, title, ids)
        axes.set_xlabel("feature")
        for start in starts[1:]:
            axes.axhline(start - 0.5, color="black", lw=0.8)
    middle = [(a + b) / 2 for a, b in zip(starts, [*starts[1:], len(label)], strict=True)]
    figure.axes[0].set_yticks(
        middle, [_plain(label[i], 24) for i in starts], rotation=90, va="center", fontsize=8
    )
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, shrink=0.7, label="W·ΔW")
    return figure


def _pathways(run: Run) -> Figure | None:
    if not run.contribution:
        return None
    figure, axes = _figure(5.0, 4.5)
    x, y = (run.contribution[k].sum(axis=1) for k in ("x", "y"))
    label = np.array([run.tables["pairs.parquet"]["label"][i] or "unlabelled" for i in run.shown])
    for i, name in enumerate(run.classes):
        own = label == name
        axes.scatter(
            x[own],
            y[own],
            s=14,
            alpha=0.8,
            color=PALETTE[i % 6],
            marker=MARKERS[i % 6],
            label=_plain(name),
        )
    axes.axline((0, 0), slope=-1, color="grey", lw=0.8, ls=":")
    axes.set_xlabel("score through feature activations")
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylabel("score through output probabilities")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _interference(run: Run) -> Figure | None:
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
        _heat(
            axes,
            np.where(np.eye(n, dtype=bool), np.nan, values),
            1.0,
            key.replace("_", " "),
            ids.tolist(),
        )
        axes.set_xlabel("feature")
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, shrink=0.8)
    return figure


def _landing(run: Run) -> Figure | None:
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
        own = every[start : start + len(names)]
        start += len(own)
        axes.imshow(
            own,
            aspect="auto",
            cmap="Blues",
            vmin=0,
            vmax=float(np.nanmax(every)),
            interpolation="nearest",
        )
        axes.set_yticks(range(len(own)), [_plain(name, 30) for name in names], fontsize=7)
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


def _timings(run: Run) -> Figure | None:
    stages = run.record.get("timings")
    if not stages:
        return None
    figure, axes = _figure(6.0, 0.8 + 0.25 * len(stages))
    axes.barh(
        [_plain(name) for name in stages][::-1], list(stages.values())[::-1], color=PALETTE[0]
    )
    axes.set_xlabel("seconds, compilation included")
    return figure


def _scores(run: Run) -> Figure | None:
    pairs = run.tables["pairs.parquet"]
    score, label = np.array(pairs["score"]), np.array([x or "unlabelled" for x in pairs["label"]])
    figure, axes = _figure(6.0, 3.5)
    edges = np.histogram_bin_edges(score, 50).tolist()
    for i, name in enumerate(run.classes):
        own = score[label == name]
        axes.hist(own, edges, alpha=0.6, color=PALETTE[i % 6], label=_plain(name))
        axes.axvline(float(np.median(own)), color=PALETTE[i % 6], ls="--")
    axes.set_xlabel("score (dashed: medians)")
    axes.set_ylabel("pairs")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _agreement(run: Run) -> Figure | None:
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
        axes.set_title(_plain(group), fontsize=9)
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, shrink=0.7, label="Spearman's ρ")
    return figure


def _verify(run: Run) -> Figure | None:
    table = run.tables.get("verify_points.parquet")
    if table is None:
        return None
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    eta, kind, predicted, true = (
        np.array(table[k]) for k in ("learning_rate", "figure", "predicted", "true")
    )
    for axes, name in zip(figure.subplots(1, 2), ("score", "mean_delta_y"), strict=True):
        for i, rate in enumerate(np.unique(eta)):
            own = (eta == rate) & (kind == name)
            axes.scatter(
                predicted[own] / rate,
                true[own] / rate,
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


# file name -> what draws it; None where the run has no data for it
FIGURES: dict[str, Callable[[Run], Figure | None]] = {
    "coefficients": _coefficients,
    "gaps": _gaps,
    "effects": _effects,
    "pathways": _pathways,
    "interference": _interference,
    "landing": _landing,
    "scores": _scores,
    "agreement": _agreement,
    "verify": _verify,
    "timings": _timings,
}
