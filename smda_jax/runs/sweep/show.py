"""Which axes of a finished sweep matter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from smda_jax.errors import InputError


def show(folder: Path, console: Console) -> None:
    """Prints, for each axis, how much of what varies between the cells goes with it.

    Raises:
        InputError: there is no finished sweep.
    """
    path = folder / "sweep.parquet"
    if not path.exists():
        if not (folder / "sweep.json").exists():
            raise InputError(folder, "is no sweep", "give the folder that sweep --out named")
        raise InputError(
            folder, "holds no finished sweep", "run its sweep command again: it continues"
        )
    columns = pq.read_table(path).to_pydict()
    axes = [name for name in json.loads((folder / "sweep.json").read_text())["grid"]]
    figures = (
        "pairs_rank_correlation",
        "coefficients_rank_correlation",
        "r2_held_out",
        "median_score",
    )
    table = Table(
        title="Share of the variance that goes with each axis",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("axis", "values", "pairs' ranks", "weights' ranks", "held-out R²", "median score"):
        table.add_column(name, justify="left" if name == "axis" else "right", overflow="fold")
    shares = {axis: [_explained(columns[axis], columns[f]) for f in figures] for axis in axes}
    for axis, own in sorted(shares.items(), key=lambda item: -np.nan_to_num(item[1]).max()):
        count = len(set(columns[axis]))
        table.add_row(axis, str(count), *("–" if np.isnan(v) else f"{v:.0%}" for v in own))
    console.print(f"{len(columns['alpha'])} cells")
    console.print(table)


def _explained(groups: list[Any], values: list[float | None]) -> float:
    """η²: variance of the groups' means over the variance of all."""
    v = np.array([np.nan if x is None else x for x in values], float)
    known = np.isfinite(v)
    keys = np.unique([str(g) for g in groups], return_inverse=True)[1][known]
    v = v[known]
    if len(v) < 2 or np.ptp(v) < 1e-15:
        return float("nan")
    means = np.bincount(keys, v) / np.maximum(np.bincount(keys), 1)
    return float(np.sum((means[keys] - v.mean()) ** 2) / np.sum((v - v.mean()) ** 2))
