"""The rows of a sweep: what is said of every cell."""

import json
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from scipy.stats import rankdata

from smda_jax.policy.sums import Answers, Cells, Sums, accumulate, answer
from smda_jax.runs.folder.cache import Cache
from smda_jax.runs.sweep.cells import activations, chosen_pairs
from smda_jax.runs.sweep.grid import digest_of

TOP = 10  # pairs, of which the overlap with the reference is told


class Standard(NamedTuple):
    """The reference cell, at the run's own settings: what other cells are compared with."""

    run: Cache
    W: Float[np.ndarray, " feature"]
    score: Float[np.ndarray, " pair"]


class Spot(NamedTuple):
    """Where cells of one weighting stand.

    Attributes:
        cache: of their pass.
        standard: what they are compared with.
        weighting: of the prompts, by its axes.
        sums: under it.
    """

    cache: Cache
    standard: Standard
    weighting: dict[str, Any]
    sums: Sums


class Answered(NamedTuple):
    """Cells of one weighting, and what the sums answer.

    Attributes:
        asked: the cells.
        names: their axes by name.
        found: policies and shifts.
        held_out: R² of fits without the held-out prompts on these.
    """

    asked: Cells
    names: list[dict[str, Any]]
    found: Answers
    held_out: Float[np.ndarray, " cell"]


def tables_of(
    spot: Spot, cells: Answered, more: dict[str, Any], wanted: tuple[str, ...]
) -> dict[str, pa.Table]:
    """Tidy rows of one weighting: axes, fit, scores, and how far all that is from the reference.

    `more` are the axes that only change what is said of the answers.
    """
    asked, names, found, test = cells
    cache, (reference, W0, score0) = spot.cache, spot.standard
    own, factor = (
        chosen_pairs(cache, more["pairs"]),
        more["learning_rate"] / cache.config.learning_rate,
    )
    score, labels = found.score[:, own], np.array([str(x) for x in cache.pairs["label"]])[own]
    ids, W = np.array(cache.pairs["pair_id"])[own].tolist(), np.asarray(found.W)
    same = cache.feature_ids == reference.feature_ids
    mean_dy = float((np.asarray(spot.sums.dy)[own] / float(spot.sums.n)).mean() * factor)
    rank, overlap = _rank_correlation(score, score0[own]), _overlap(score, score0[own])
    through = [
        np.abs(W[:, None] * np.asarray(v)[:, own]).sum(axis=(1, 2))
        for v in (found.delta_w_x, found.delta_w_y)
    ]
    rows, of_pairs, of_features = [], [], []
    for c, name in enumerate(names):
        axes = {k: _plain(v) for k, v in (spot.weighting | name | more).items()}
        values, mask, cell = (
            score[c] * factor,
            np.asarray(asked.mask[c]),
            digest_of(spot.cache.fingerprint, axes),
        )
        rows.append(
            {
                "cell": cell,
                **axes,
                "n_features": int(mask.sum()),
                "n_prompts": float(spot.sums.n),
                "n_pairs": len(ids),
                "r2": float(found.r2[c]),
                "r2_held_out": float(test[c]),
                "norm_w": float(np.linalg.norm(W[c])),
                "mean_score": float(values.mean()),
                "std_score": float(values.std()),
                "median_score": float(np.median(values)),
                "positive_share": float((values > 0).mean()),
                "mean_delta_y": mean_dy,
                "delta_x_share": float(through[0][c] / max(through[0][c] + through[1][c], 1e-300)),
                **{
                    f"median_score[{x}]": float(np.median(values[labels == x]))
                    for x in dict.fromkeys(labels.tolist())
                },
                "pairs_rank_correlation": float(rank[c]),
                "top_pairs_overlap": float(overlap[c]),
                "coefficients_rank_correlation": float(
                    _rank_correlation(W[c : c + 1, mask], W0[mask])[0]
                )
                if same
                else float("nan"),
                "sign_changes": int((np.sign(W[c, mask]) != np.sign(W0[mask])).sum())
                if same
                else None,
            }
        )
        if "pairs" in wanted:
            of_pairs.append(pa.table({"cell": [cell] * len(ids), "pair_id": ids, "score": values}))
        if "coefficients" in wanted:
            k = cache.feature_ids
            of_features.append(pa.table({"cell": [cell] * len(k), "feature_id": k, "weight": W[c]}))
    # What is not defined (NaN) is null.
    rows = [
        {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()}
        for row in rows
    ]
    tables = {"sweep": pa.Table.from_pylist(rows), "pairs": of_pairs, "coefficients": of_features}
    return {
        name: pa.concat_tables(v) if isinstance(v, list) else v
        for name, v in tables.items()
        if name in wanted
    }


def standard_of(reference: Cache) -> Standard:
    """Policy and scores of the reference cell."""
    c = reference.config
    X, delta_x = activations(reference, c.gate, 0.0)
    ones, mask = np.ones((1, len(X))), np.ones((1, X.shape[1]), bool)
    sums = accumulate(X, reference.y.astype(np.float64), delta_x, reference.delta_y, ones)
    no = np.zeros(1, bool)
    found = answer(sums.at(0), Cells(np.array([reference.alpha]), mask, no, no))
    return Standard(reference, np.asarray(found.W)[0], found.score[0])


def _rank_correlation(
    values: Float[np.ndarray, "cell item"], standard: Float[np.ndarray, " item"]
) -> Float[np.ndarray, " cell"]:
    """Spearman's ρ of every row with the reference; NaN where nothing varies."""
    a, b = rankdata(values, axis=1), rankdata(standard)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a @ b) / np.sqrt((a * a).sum(axis=1) * (b @ b))


def _overlap(
    values: Float[np.ndarray, "cell pair"], standard: Float[np.ndarray, " pair"]
) -> Float[np.ndarray, " cell"]:
    """Share of the reference's strongest pairs, by |score|, that are among a cell's strongest."""
    k = min(TOP, len(standard))
    first = np.argsort(-np.abs(standard), kind="stable")[:k]
    return np.isin(np.argsort(-np.abs(values), axis=1, kind="stable")[:, :k], first).mean(axis=1)


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple) else value
