"""How all figures look."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smda_jax.report.data import Columns

PALETTE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
)  # Okabe and Ito: told apart by everyone
MARKERS = "oDs^PX"


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one panel."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plain(text: object, most: int = 40) -> str:
    """A text from a data set, made harmless and short."""
    # A dollar sign would start a formula.
    word = str(text).replace("$", r"\$").replace("\n", " ")
    return word if len(word) <= most else word[: most - 1] + "…"


def names_of(features: Columns) -> list[str]:
    """Ids of features with their labels."""
    return [
        plain(f"{i} {label}" if label else i)
        for i, label in zip(features["feature_id"], features["label"], strict=True)
    ]


def heat(axes: Axes, values: np.ndarray, top: float, title: str, columns: Sequence[object]) -> None:
    """One heat map, columns named where there is room."""
    axes.imshow(values, cmap="PuOr", vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    if len(columns) <= 80:
        axes.set_xticks(range(len(columns)), [str(c) for c in columns], rotation=90, fontsize=5)


def scale_of(values: np.ndarray, quantile: float) -> float:
    """A quantile of the known magnitudes; one where there is none."""
    known = np.abs(values[np.isfinite(values)])
    return (float(np.quantile(known, quantile)) if known.size else 0.0) or 1.0
