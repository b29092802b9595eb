"""The tables of a run, column by column; `columns` says what each means."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from smda_jax.data.records import Pairs, Prompts
from smda_jax.policy.agreement import classes_of, rank_agreement
from smda_jax.policy.curation import far_off_target, misaligned
from smda_jax.policy.gaps import Gap
from smda_jax.policy.influence import Influence
from smda_jax.policy.interference import (
    Geometry,
    correlations,
    cosines,
    dominant_feature,
    explains,
    landing,
    off_target_share,
    typical,
)
from smda_jax.policy.pathways import pathways
from smda_jax.policy.selection import LABELS
from smda_jax.reading.evaluation import Evaluation
from smda_jax.runs.attribution.baselines import BASELINES
from smda_jax.runs.attribution.confidence import Confidence
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs.load import Inputs
from smda_jax.sae.encoder import directions

OFF_TARGET = ("off_target_share", "off_target_category", "off_target_label")
INTERFERING = 300  # features that are compared with each other: of more, those that shift most
CANDIDATES = 10  # prompts of each kind that a feature is shown with


def _real(values: Any) -> pa.Array:
    """Numbers; one that is not defined (NaN) is empty."""
    return pa.array(values, pa.float64(), from_pandas=True)


def _texts(texts: list[str], redact: bool) -> pa.Array:
    return pa.array([None] * len(texts) if redact else texts, pa.string())


def prompt_table(e: Evaluation, prompts: Prompts, W: np.ndarray, refused: np.ndarray, redact: bool) -> Mapping[str, Any]:
    """`prompts.parquet`."""
    ids, words = np.array(e.feature_ids), pa.string()  # the type is given, since a column may hold nothing that shows it
    return {
        "prompt_id": prompts.ids, "label": pa.array(prompts.label, words), "category": pa.array(prompts.category, words),
        "refused": refused, "y": e.y.astype(np.float64), "prediction": e.x.astype(np.float64) @ W,
        "active_features": pa.array([ids[a].tolist() for a in e.active], pa.list_(pa.int64())),
        "prompt": _texts(prompts.text, redact),
    }  # fmt: skip


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
        "pair_id": pairs.ids, "label": pa.array(pairs.label, words), "category": pa.array(pairs.category, words),
        "planted": pa.array(pairs.planted, pa.bool_()), "score": score,
    }  # fmt: skip
    if sure is not None:
        table |= {f"score_{end}": getattr(sure.score, end) for end in ("low", "high", "sign_stability")}
    table |= {name: _real(value) for name, value in simple.items()}
    off_target = np.full(len(pairs), np.nan)
    table |= {"dominant_feature": pa.nulls(len(pairs), pa.int64())} | dict.fromkeys(OFF_TARGET, _real(off_target))
    if influence is not None:
        off_target, dominant = off_target_share(influence.contribution, own), dominant_feature(influence.contribution)
        moves = ~np.isnan(off_target)  # a pair that moves nothing has no dominant feature
        table |= {"dominant_feature": pa.array(ids[dominant], pa.int64(), mask=~moves), "off_target_share": _real(off_target)}
        # A pair's label begins with that of its prompt: harmful_refusal.
        groups = (inputs.prompts.category, pairs.category), (inputs.prompts.label, [x and x.split("_")[0] for x in pairs.label])
        for name, (group, asked) in zip(OFF_TARGET[1:], groups, strict=True):
            features, has = typical(e.active, group, asked)
            table[name] = _real(np.where(has, off_target_share(influence.contribution, features), np.nan))
        table |= {name: _real(share) for name, share in pathways(influence, 1)._asdict().items()}
        table["unintended"] = moves & ~own[np.arange(len(pairs)), dominant]
    table["flagged"] = flagged
    unknown = np.isnan(simple["mean_delta_y"])
    by_dy = misaligned(simple["mean_delta_y"], pairs.label) & ~unknown
    if sure is not None:
        table["flag_stability"] = _real(sure.flag_stability(sure.scores, pairs.label, flagged))
        stable = _real(sure.flag_stability(sure.mean_dys, pairs.label, by_dy))
        table |= {
            "mean_delta_y_low": sure.mean_dy.low,
            "mean_delta_y_high": sure.mean_dy.high,
            "flag_delta_y_stability": stable,
        }
    far = pa.array(far_off_target(off_target, pairs.label), pa.bool_(), mask=np.isnan(off_target))
    return table | {
        "flagged_delta_y": pa.array(by_dy, pa.bool_(), mask=unknown),
        "flagged_quartile": misaligned(score, pairs.label, 0.25), "flagged_off_target": far,
        "truncated": [t.truncated for t in inputs.pair_tokens],
        "own_features": pa.array([ids[a].tolist() for a in own], pa.list_(pa.int64())),
        "prompt": _texts(pairs.prompt, redact), "response": _texts(pairs.response, redact),
    }  # fmt: skip


def influence_rows(
    influence: dict[str, Influence], confidence: dict[str, Confidence], pair_ids: list[str], ids: np.ndarray
) -> Iterator[dict[str, Any]]:
    """`influence.parquet`, some thousand pairs at a time."""
    figures = ("delta_w_x", "delta_w_y", "delta_w", "contribution")
    for subset, i in influence.items():
        values = {name: getattr(i, name) for name in figures}
        if subset in confidence:
            found = confidence[subset].delta_w
            values |= {"delta_w_low": found.low, "delta_w_high": found.high, "sign_stability": found.sign_stability}
        for start in range(0, len(pair_ids), 1000):
            some = slice(start, start + 1000)
            n = len(pair_ids[some])
            yield {
                "subset": pa.array([subset] * (n * len(ids))), "pair_id": np.repeat(pair_ids[some], len(ids)),
                "feature_id": np.tile(ids, n), **{name: v[some].ravel() for name, v in values.items()},
            }  # fmt: skip


def gap_tables(found: list[Gap], ids: np.ndarray) -> dict[str, Mapping[str, Any]]:
    """`gaps.parquet`, and `gap_features.parquet`: what each feature carries of a gap."""
    plain = ("category", "label", "prompts", "others", "refused", "y", "prediction", "residual", "gap")
    table: dict[str, Any] = {name: [getattr(g, name) for g in found] for name in plain}
    for i, name in enumerate(("y", "residual", "gap")):
        ends = {end: [float(getattr(g.interval, end)[i]) for g in found] for end in ("low", "high")}
        table |= {f"{name}_{end}": _real(value) for end, value in ends.items()}
    table |= {
        "category": pa.array(table["category"], pa.string()),
        "label": pa.array(table["label"], pa.string()),
        "gap": _real(table["gap"]),
    }
    carried = np.concatenate([g.carried for g in found]) if found else np.zeros(0)
    names = np.repeat([g.category for g in found], len(ids)) if found else []
    rows = {
        "category": pa.array(list(names), pa.string()), "feature_id": np.tile(ids, len(found)),
        "carried": _real(carried),
    }  # fmt: skip
    return {"gaps.parquet": table, "gap_features.parquet": rows}


def feature_table(
    c: Attribute,
    e: Evaluation,
    W: np.ndarray,
    labels: dict[int, str],
    pairs: Pairs,
    influence: Influence | None,
    sure: Confidence | None,
) -> Mapping[str, Any]:
    """`features.parquet`: every feature's part in the policy and, by class of pairs, in its shifts, where these were kept."""
    d = len(W)
    fixed = {
        "feature_id": e.feature_ids, "label": [labels.get(i) for i in e.feature_ids], "weight": W,
        **({} if sure is None else {
            "weight_low": sure.coefficients.low, "weight_high": sure.coefficients.high,
            "sign_stability": sure.coefficients.sign_stability,
        }),
        "active_share": e.active.mean(axis=0), "mean_activation": e.x.mean(axis=0, dtype=np.float64),
        "link": [f"https://www.neuronpedia.org/{c.neuronpedia}/{i}" if c.neuronpedia else None for i in e.feature_ids],
    }  # fmt: skip
    nothing = dict.fromkeys(("mean_contribution", "share", "through_x", "cancellation"), np.full(d, np.nan))
    parts = {} if influence is None else {
        name: Influence(W, influence.delta_w_x[own], influence.delta_w_y[own]) for name, own in classes_of(pairs.label).items()
    }  # fmt: skip
    rows = {} if parts else {key: list(value) for key, value in ({"class": ["all"] * d} | fixed | nothing).items()}
    for name, part in parts.items():
        effect, split = np.abs(part.contribution), pathways(part, 0)
        size, moves = effect.sum(axis=0), effect.sum(axis=1) > 0
        columns = {
            "class": [name] * d, **fixed, "mean_contribution": part.contribution.mean(axis=0),
            "share": size / size.sum() if size.sum() else np.full(d, np.nan),
            "through_x": split.through_x, "cancellation": split.cancellation,
            "dominant_pairs": np.bincount(dominant_feature(effect[moves]), minlength=d),
        }  # fmt: skip
        for key, value in columns.items():
            rows.setdefault(key, []).extend(value)
    words = {key: pa.array(rows[key], pa.string()) for key in ("class", "label", "link")}
    out = {k: _real(v) if isinstance(v[0], float) else v for k, v in rows.items()} | words
    return out if parts else out | {"dominant_pairs": pa.nulls(d, pa.int64())}


def interference_table(
    e: Evaluation, influence: Influence, own: np.ndarray, seed: int
) -> tuple[Mapping[str, Any], dict[str, Geometry]]:
    """`interference.parquet`: every two features; and whether geometry explains which of them shift together."""
    size = np.abs(influence.contribution).sum(axis=0)
    most = np.sort(np.argsort(-size, kind="stable")[:INTERFERING])
    ids = np.array(e.feature_ids)[most]
    matrices = {
        "landing": landing(influence.contribution, own[:, most])[:, most],
        "co_shift": correlations(influence.delta_w[:, most]), "encoder_cosine": cosines(directions(e.encoder)[:, most]),
        "activation_correlation": correlations(e.x[:, most]),
    }  # fmt: skip
    table = {
        "feature_id": np.repeat(ids, len(ids)), "other_id": np.tile(ids, len(ids)),
        **{name: _real(m.ravel()) for name, m in matrices.items()},
    }  # fmt: skip
    tests = {
        name: explains(matrices[name], matrices["co_shift"], seed=seed) for name in ("encoder_cosine", "activation_correlation")
    }
    return table, tests


def landing_table(influence: Influence, pairs: Pairs, ids: np.ndarray) -> Mapping[str, Any]:
    """`landing.parquet`: where the effect of every class and every category of pairs falls."""
    kinds = {"class": pairs.label, "category": pairs.category}
    groups = {(kind, name): [x == name for x in own] for kind, own in kinds.items() for name in dict.fromkeys(own) if name}
    member = np.array(list(groups.values()), bool).reshape(-1, len(pairs)).T
    shares, W = landing(influence.contribution, member), influence.contribution
    with np.errstate(invalid="ignore"):
        mean = member.T.astype(np.float64) @ W / member.sum(axis=0)[:, None]
    each = [pa.array(np.repeat([key[i] for key in groups] or [""], len(ids))[: shares.size], pa.string()) for i in (0, 1)]
    return {
        "kind": each[0], "group": each[1], "pairs": np.repeat(member.sum(axis=0), len(ids)),
        "feature_id": np.tile(ids, len(groups)), "share": _real(shares.ravel()), "mean_contribution": _real(mean.ravel()),
    }  # fmt: skip


def agreement_table(pairs: Pairs, figures: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """`agreement.parquet`: how alike the score and the simple figures order the pairs."""
    names = ("score", *BASELINES)
    known = {k: np.asarray(figures[k], np.float64) for k in names if k in figures and not np.all(np.isnan(figures[k]))}
    rows = rank_agreement(known, pairs.label)
    table: dict[str, Any] = {"class": pa.array([r.among for r in rows], pa.string())}
    table |= {key: pa.array([getattr(r, key) for r in rows], pa.string()) for key in ("figure", "other")}
    table |= {key: pa.array([getattr(r, key) for r in rows], pa.int64()) for key in ("pairs", "top")}
    table |= {key: _real([getattr(r, key) for r in rows]) for key in ("spearman", "kendall", "overlap", "expected")}
    return table


def candidate_table(e: Evaluation, prompts: Prompts, labels: dict[int, str], redact: bool) -> Mapping[str, Any]:
    """`label_candidates.parquet`: prompts that show what a feature responds to, for whoever is to name it.

    Top: where it is most active; bottom: where its pre-activation is lowest; contrastive: where it is most active among prompts
    of the label on which it is least active on average.
    """
    kinds = [np.array([x == name for x in prompts.label]) for name in LABELS]
    rows: dict[str, list[Any]] = {k: [] for k in ("feature_id", "label", "kind", "rank", "prompt_id", "activation", "prompt")}
    for k, feature in enumerate(e.feature_ids):
        z, order = e.z[:, k], np.lexsort((-e.z[:, k], ~e.active[:, k]))
        chosen = {"top": order[:CANDIDATES], "bottom": order[::-1][:CANDIDATES]}
        if all(kind.any() for kind in kinds):
            against = min(kinds, key=lambda kind: float(e.x[kind, k].mean()))
            chosen["contrastive"] = order[against[order]][:CANDIDATES]
        for kind, some in chosen.items():
            for rank, n in enumerate(some.tolist()):
                text = None if redact else prompts.text[n]
                row = (feature, labels.get(feature), kind, rank + 1, prompts.ids[n], float(z[n]), text)
                for key, value in zip(rows, row, strict=True):
                    rows[key].append(value)
    return rows | {key: pa.array(rows[key], pa.string()) for key in ("label", "kind", "prompt_id", "prompt")}
