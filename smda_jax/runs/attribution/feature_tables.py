"""The tables of a run that speak of features; `columns` says what each column means."""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from smda_jax.data.records import Pairs
from smda_jax.policy.agreement import classes_of
from smda_jax.policy.influence import Influence
from smda_jax.policy.interference import (
    Geometry,
    correlations,
    cosines,
    dominant_feature,
    explains,
    landing,
)
from smda_jax.policy.pathways import pathways
from smda_jax.runs.attribution.tables import Figures, Table, real
from smda_jax.sae.encoder import directions

INTERFERING = 300  # features that are compared with each other: of more, those that shift most


def feature_table(f: Figures) -> Table:
    """`features.parquet`: every feature's part in the policy and, by class, in the shifts."""
    d, fixed = len(f.W), _of_policy(f)
    parts: dict[str, Influence] = {}
    if f.influence is not None:
        x, y = f.influence.delta_w_x, f.influence.delta_w_y
        classes = classes_of(f.inputs.pairs.label)
        parts = {name: Influence(f.W, x[own], y[own]) for name, own in classes.items()}
    names = ("mean_contribution", "share", "through_x", "cancellation")
    nothing = {"class": ["all"] * d} | fixed | dict.fromkeys(names, np.full(d, np.nan))
    rows = {} if parts else {key: list(value) for key, value in nothing.items()}
    for name, part in parts.items():
        effect, split = np.abs(part.contribution), pathways(part, 0)
        size, moves = effect.sum(axis=0), effect.sum(axis=1) > 0
        columns = {
            "class": [name] * d,
            **fixed,
            "mean_contribution": part.contribution.mean(axis=0),
            "share": size / size.sum() if size.sum() else np.full(d, np.nan),
            "through_x": split.through_x,
            "cancellation": split.cancellation,
            "dominant_pairs": np.bincount(dominant_feature(effect[moves]), minlength=d),
        }
        for key, value in columns.items():
            rows.setdefault(key, []).extend(value)
    words = {key: pa.array(rows[key], pa.string()) for key in ("class", "label", "link")}
    out = {k: real(v) if isinstance(v[0], float) else v for k, v in rows.items()} | words
    return out if parts else out | {"dominant_pairs": pa.nulls(d, pa.int64())}


def _of_policy(f: Figures) -> dict[str, Any]:
    """What a feature is in the policy, whatever the pairs."""
    e, where = f.evaluation, f.config.neuronpedia
    ids, labels = e.feature_ids, f.inputs.labels
    columns: dict[str, Any] = {
        "feature_id": ids,
        "label": [labels.get(i) for i in ids],
        "weight": f.W,
    }
    if f.sure is not None:
        sure = f.sure.coefficients
        columns |= {"weight_low": sure.low, "weight_high": sure.high}
        columns["sign_stability"] = sure.sign_stability
    page = f"https://www.neuronpedia.org/{where}"
    return columns | {
        "active_share": e.active.mean(axis=0),
        "mean_activation": e.x.mean(axis=0, dtype=np.float64),
        "link": [f"{page}/{i}" if where else None for i in ids],
    }


def interference_table(f: Figures, influence: Influence) -> tuple[Table, dict[str, Geometry]]:
    """`interference.parquet`: every two features; and whether geometry explains which of them shift
    together."""
    e, own, seed = f.evaluation, f.own, f.config.seed
    size = np.abs(influence.contribution).sum(axis=0)
    most = np.sort(np.argsort(-size, kind="stable")[:INTERFERING])
    ids = np.array(e.feature_ids)[most]
    matrices = {
        "landing": landing(influence.contribution, own[:, most])[:, most],
        "co_shift": correlations(influence.delta_w[:, most]),
        "encoder_cosine": cosines(directions(e.encoder)[:, most]),
        "activation_correlation": correlations(e.x[:, most]),
    }
    table = {
        "feature_id": np.repeat(ids, len(ids)),
        "other_id": np.tile(ids, len(ids)),
        **{name: real(m.ravel()) for name, m in matrices.items()},
    }
    tests = {
        name: explains(matrices[name], matrices["co_shift"], seed=seed)
        for name in ("encoder_cosine", "activation_correlation")
    }
    return table, tests


def landing_table(influence: Influence, pairs: Pairs, ids: Int[np.ndarray, " feature"]) -> Table:
    """`landing.parquet`: where the effect of every class and every category of pairs falls."""
    kinds = {"class": pairs.label, "category": pairs.category}
    groups = {
        (kind, name): [x == name for x in own]
        for kind, own in kinds.items()
        for name in dict.fromkeys(own)
        if name
    }
    member = np.array(list(groups.values()), bool).reshape(-1, len(pairs)).T
    shares, W = landing(influence.contribution, member), influence.contribution
    with np.errstate(invalid="ignore"):
        mean = member.T.astype(np.float64) @ W / member.sum(axis=0)[:, None]
    each = [
        pa.array(
            np.repeat([key[i] for key in groups] or [""], len(ids))[: shares.size], pa.string()
        )
        for i in (0, 1)
    ]
    return {
        "kind": each[0],
        "group": each[1],
        "pairs": np.repeat(member.sum(axis=0), len(ids)),
        "feature_id": np.tile(ids, len(groups)),
        "share": real(shares.ravel()),
        "mean_contribution": real(mean.ravel()),
    }
