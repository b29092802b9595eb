"""The tables of a run, column by column; `columns` says what each means."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from smda_jax.data.records import Pairs, Prompts
from smda_jax.policy.agreement import rank_agreement
from smda_jax.policy.curation import far_off_target, misaligned
from smda_jax.policy.gaps import Gap
from smda_jax.policy.influence import Influence
from smda_jax.policy.interference import (
    dominant_feature,
    off_target_share,
    typical,
)
from smda_jax.policy.pathways import pathways
from smda_jax.policy.selection import LABELS
from smda_jax.reading.evaluation import Evaluation
from smda_jax.runs.attribution.baselines import BASELINES
from smda_jax.runs.attribution.confidence import Confidence
from smda_jax.runs.inputs.load import Inputs

OFF_TARGET = ("off_target_share", "off_target_category", "off_target_label")
CANDIDATES = 10  # prompts of each kind that a feature is shown with


def real(values: Any) -> pa.Array:
    """Numbers; one that is not defined (NaN) is empty."""
    return pa.array(values, pa.float64(), from_pandas=True)


def _texts(texts: list[str], redact: bool) -> pa.Array:
    return pa.array([None] * len(texts) if redact else texts, pa.string())


def prompt_table(
    e: Evaluation, prompts: Prompts, W: np.ndarray, refused: np.ndarray, redact: bool
) -> Mapping[str, Any]:
    """`prompts.parquet`."""
    ids, words = (
        np.array(e.feature_ids),
        pa.string(),
    )  # the type is given, since a column may hold nothing that shows it
    return {
        "prompt_id": prompts.ids,
        "label": pa.array(prompts.label, words),
        "category": pa.array(prompts.category, words),
        "refused": refused,
        "y": e.y.astype(np.float64),
        "prediction": e.x.astype(np.float64) @ W,
        "active_features": pa.array([ids[a].tolist() for a in e.active], pa.list_(pa.int64())),
        "prompt": _texts(prompts.text, redact),
    }


def pair_table(
    e: Evaluation,
    inputs: Inputs,
    score: np.ndarray,
    simple: Mapping[str, np.ndarray],
    influence: Influence | None,
    own: np.ndarray,
    sure: Confidence | None,
    redact: bool,
) -> dict[str, Any]:
    """`pairs.parquet`; `own` says which features are active on each pair's own prompt."""
    pairs, ids = inputs.pairs, np.array(e.feature_ids)
    words, flagged = pa.string(), misaligned(score, pairs.label)
    table = {
        "pair_id": pairs.ids,
        "label": pa.array(pairs.label, words),
        "category": pa.array(pairs.category, words),
        "planted": pa.array(pairs.planted, pa.bool_()),
        "score": score,
    }
    if sure is not None:
        table |= {
            f"score_{end}": getattr(sure.score, end) for end in ("low", "high", "sign_stability")
        }
    table |= {name: real(value) for name, value in simple.items()}
    off_target = np.full(len(pairs), np.nan)
    table |= {"dominant_feature": pa.nulls(len(pairs), pa.int64())} | dict.fromkeys(
        OFF_TARGET, real(off_target)
    )
    if influence is not None:
        off_target, dominant = (
            off_target_share(influence.contribution, own),
            dominant_feature(influence.contribution),
        )
        moves = ~np.isnan(off_target)  # a pair that moves nothing has no dominant feature
        table |= {
            "dominant_feature": pa.array(ids[dominant], pa.int64(), mask=~moves),
            "off_target_share": real(off_target),
        }
        # A pair's label begins with that of its prompt: harmful_refusal.
        groups = (
            (inputs.prompts.category, pairs.category),
            (inputs.prompts.label, [x and x.split("_")[0] for x in pairs.label]),
        )
        for name, (group, asked) in zip(OFF_TARGET[1:], groups, strict=True):
            features, has = typical(e.active, group, asked)
            table[name] = real(
                np.where(has, off_target_share(influence.contribution, features), np.nan)
            )
        table |= {name: real(share) for name, share in pathways(influence, 1)._asdict().items()}
        table["unintended"] = moves & ~own[np.arange(len(pairs)), dominant]
    table["flagged"] = flagged
    unknown = np.isnan(simple["mean_delta_y"])
    by_dy = misaligned(simple["mean_delta_y"], pairs.label) & ~unknown
    if sure is not None:
        table["flag_stability"] = real(sure.flag_stability(sure.scores, pairs.label, flagged))
        stable = real(sure.flag_stability(sure.mean_dys, pairs.label, by_dy))
        table |= {
            "mean_delta_y_low": sure.mean_dy.low,
            "mean_delta_y_high": sure.mean_dy.high,
            "flag_delta_y_stability": stable,
        }
    far = pa.array(far_off_target(off_target, pairs.label), pa.bool_(), mask=np.isnan(off_target))
    return table | {
        "flagged_delta_y": pa.array(by_dy, pa.bool_(), mask=unknown),
        "flagged_quartile": misaligned(score, pairs.label, 0.25),
        "flagged_off_target": far,
        "truncated": [t.truncated for t in inputs.pair_tokens],
        "own_features": pa.array([ids[a].tolist() for a in own], pa.list_(pa.int64())),
        "prompt": _texts(pairs.prompt, redact),
        "response": _texts(pairs.response, redact),
    }


def influence_rows(
    influence: dict[str, Influence],
    confidence: dict[str, Confidence],
    pair_ids: list[str],
    ids: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """`influence.parquet`, some thousand pairs at a time."""
    figures = ("delta_w_x", "delta_w_y", "delta_w", "contribution")
    for subset, i in influence.items():
        values = {name: getattr(i, name) for name in figures}
        if subset in confidence:
            found = confidence[subset].delta_w
            values |= {
                "delta_w_low": found.low,
                "delta_w_high": found.high,
                "sign_stability": found.sign_stability,
            }
        for start in range(0, len(pair_ids), 1000):
            some = slice(start, start + 1000)
            n = len(pair_ids[some])
            yield {
                "subset": pa.array([subset] * (n * len(ids))),
                "pair_id": np.repeat(pair_ids[some], len(ids)),
                "feature_id": np.tile(ids, n),
                **{name: v[some].ravel() for name, v in values.items()},
            }


def gap_tables(found: list[Gap], ids: np.ndarray) -> dict[str, Mapping[str, Any]]:
    """`gaps.parquet`, and `gap_features.parquet`: what each feature carries of a gap."""
    plain = (
        "category",
        "label",
        "prompts",
        "others",
        "refused",
        "y",
        "prediction",
        "residual",
        "gap",
    )
    table: dict[str, Any] = {name: [getattr(g, name) for g in found] for name in plain}
    for i, name in enumerate(("y", "residual", "gap")):
        ends = {end: [float(getattr(g.interval, end)[i]) for g in found] for end in ("low", "high")}
        table |= {f"{name}_{end}": real(value) for end, value in ends.items()}
    table |= {
        "category": pa.array(table["category"], pa.string()),
        "label": pa.array(table["label"], pa.string()),
        "gap": real(table["gap"]),
    }
    carried = np.concatenate([g.carried for g in found]) if found else np.zeros(0)
    names = np.repeat([g.category for g in found], len(ids)) if found else []
    rows = {
        "category": pa.array(list(names), pa.string()),
        "feature_id": np.tile(ids, len(found)),
        "carried": real(carried),
    }
    return {"gaps.parquet": table, "gap_features.parquet": rows}


def agreement_table(pairs: Pairs, figures: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """`agreement.parquet`: how alike the score and the simple figures order the pairs."""
    names = ("score", *BASELINES)
    known = {
        k: np.asarray(figures[k], np.float64)
        for k in names
        if k in figures and not np.all(np.isnan(figures[k]))
    }
    rows = rank_agreement(known, pairs.label)
    table: dict[str, Any] = {"class": pa.array([r.among for r in rows], pa.string())}
    table |= {
        key: pa.array([getattr(r, key) for r in rows], pa.string()) for key in ("figure", "other")
    }
    table |= {
        key: pa.array([getattr(r, key) for r in rows], pa.int64()) for key in ("pairs", "top")
    }
    table |= {
        key: real([getattr(r, key) for r in rows])
        for key in ("spearman", "kendall", "overlap", "expected")
    }
    return table


def candidate_table(
    e: Evaluation, prompts: Prompts, labels: dict[int, str], redact: bool
) -> Mapping[str, Any]:
    """`label_candidates.parquet`: prompts that show what a feature responds to, for whoever is to
    name it.

    Top: where it is most active; bottom: where its pre-activation is lowest; contrastive: where it
    is most active among prompts of the label on which it is least active on average.
    """
    kinds = [np.array([x == name for x in prompts.label]) for name in LABELS]
    rows: dict[str, list[Any]] = {
        k: [] for k in ("feature_id", "label", "kind", "rank", "prompt_id", "activation", "prompt")
    }
    for k, feature in enumerate(e.feature_ids):
        z, order = e.z[:, k], np.lexsort((-e.z[:, k], ~e.active[:, k]))
        chosen = {"top": order[:CANDIDATES], "bottom": order[::-1][:CANDIDATES]}
        if all(kind.any() for kind in kinds):
            against = min(kinds, key=lambda kind: float(e.x[kind, k].mean()))
            chosen["contrastive"] = order[against[order]][:CANDIDATES]
        for kind, some in chosen.items():
            for rank, n in enumerate(some.tolist()):
                text = None if redact else prompts.text[n]
                row = (
                    feature,
                    labels.get(feature),
                    kind,
                    rank + 1,
                    prompts.ids[n],
                    float(z[n]),
                    text,
                )
                for key, value in zip(rows, row, strict=True):
                    rows[key].append(value)
    return rows | {
        key: pa.array(rows[key], pa.string()) for key in ("label", "kind", "prompt_id", "prompt")
    }
