"""The tables of a run, column by column; `columns` says what each means."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from smda_jax.policy.agreement import rank_agreement
from smda_jax.policy.curation import can_be_flagged, far_off_target, misaligned
from smda_jax.policy.gaps import Gap
from smda_jax.policy.influence import Influence
from smda_jax.policy.interference import (
    dominant_feature,
    off_target_share,
    typical,
)
from smda_jax.policy.pathways import pathways
from smda_jax.reading.evaluation import Evaluation
from smda_jax.runs.attribution.baselines import BASELINES
from smda_jax.runs.attribution.confidence import Confidence
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs.load import Inputs

OFF_TARGET = ("off_target_share", "off_target_category", "off_target_label")
Table = Mapping[str, Any]
CANDIDATES = 10  # prompts of each kind that a feature is shown with


def real(values: Any) -> pa.Array:
    """Numbers; one that is not defined (NaN) is empty."""
    return pa.array(values, pa.float64(), from_pandas=True)


@dataclass(frozen=True)
class Figures:
    """What the tables of a run are made of; arrays are those of subset `all`.

    Attributes:
        config: of the run.
        inputs: what it read.
        evaluation: the prompts.
        own: features that are active on each pair's own prompt.
        W: the policy.
        shows: which prompts show the behaviour.
        score: of every pair.
        simple: further figures of every pair, by column.
        influence: of every pair; None where only scores were kept.
        sure: how sure all that is; None where nothing was resampled.
    """

    config: Attribute
    inputs: Inputs
    evaluation: Evaluation
    own: Bool[np.ndarray, "pair feature"]
    W: Float[np.ndarray, " feature"]
    shows: Bool[np.ndarray, " prompt"]
    score: Float[np.ndarray, " pair"]
    simple: Mapping[str, Float[np.ndarray, " pair"]]
    influence: Influence | None
    sure: Confidence | None

    @property
    def ids(self) -> Int[np.ndarray, " feature"]:
        """Of the features."""
        return np.array(self.evaluation.feature_ids)

    def texts(self, texts: list[str]) -> pa.Array:
        """Texts of the data, or nothing where they are to be left out."""
        return pa.array([None] * len(texts) if self.config.redact else texts, pa.string())

    def features_of(self, active: Bool[np.ndarray, "row feature"]) -> pa.Array:
        """The ids of the active features of every row."""
        return pa.array([self.ids[a].tolist() for a in active], pa.list_(pa.int64()))


def prompt_table(f: Figures) -> Table:
    """`prompts.parquet`."""
    e, prompts = f.evaluation, f.inputs.prompts
    words = pa.string()  # given, since a column may hold nothing that shows it
    return {
        "prompt_id": prompts.ids,
        "label": pa.array(prompts.label, words),
        "category": pa.array(prompts.category, words),
        "shows": f.shows,
        "refused": f.shows,
        "y": e.y.astype(np.float64),
        "prediction": e.x.astype(np.float64) @ f.W,
        "active_features": f.features_of(e.active),
        "prompt": f.texts(prompts.text),
    }


def pair_table(f: Figures) -> dict[str, Any]:
    """`pairs.parquet`."""
    pairs, sure, words = f.inputs.pairs, f.sure, pa.string()
    raises = f.inputs.polarity.raises
    can, flagged = can_be_flagged(raises), misaligned(f.score, raises)
    table = {
        "pair_id": pairs.ids,
        "label": pa.array(pairs.label, words),
        "category": pa.array(pairs.category, words),
        "planted": pa.array(pairs.planted, pa.bool_()),
        "raises": pa.array(raises, pa.bool_()),
        "score": f.score,
    }
    if sure is not None:
        ends = ("low", "high", "sign_stability")
        table |= {f"score_{end}": getattr(sure.score, end) for end in ends}
    table |= {name: real(value) for name, value in f.simple.items()}
    off_target, falls = _where_it_falls(f)
    table |= falls
    table["flagged"] = flagged
    mean_dy = f.simple["mean_delta_y"]
    unknown = np.isnan(mean_dy)
    by_dy = misaligned(mean_dy, raises) & ~unknown
    if sure is not None:
        alike = sure.flag_stability(sure.scores, raises, flagged)
        alike_by_dy = sure.flag_stability(sure.mean_dys, raises, by_dy)
        table |= {
            "flag_stability": real(alike),
            "mean_delta_y_low": real(np.where(unknown, np.nan, sure.mean_dy.low)),
            "mean_delta_y_high": real(np.where(unknown, np.nan, sure.mean_dy.high)),
            "flag_delta_y_stability": real(np.where(unknown, np.nan, alike_by_dy)),
        }
    far, nothing = far_off_target(off_target, pairs.label), np.isnan(off_target)
    return table | {
        "flagged_delta_y": pa.array(by_dy, pa.bool_(), mask=unknown | ~can),
        "flagged_quartile": misaligned(f.score, raises, 0.25),
        "flagged_off_target": pa.array(far, pa.bool_(), mask=nothing),
        "truncated": [t.truncated for t in f.inputs.pair_tokens],
        "own_features": f.features_of(f.own),
        "prompt": f.texts(pairs.prompt),
        "response": f.texts(pairs.response),
    }


def _where_it_falls(f: Figures) -> tuple[Float[np.ndarray, " pair"], dict[str, Any]]:
    """Off-target shares of the pairs, and the columns that say where their effects fall."""
    pairs, prompts, influence = f.inputs.pairs, f.inputs.prompts, f.influence
    off_target = np.full(len(pairs), np.nan)
    columns = {"dominant_feature": pa.nulls(len(pairs), pa.int64())}
    columns |= dict.fromkeys(OFF_TARGET, real(off_target))
    if influence is None:
        return off_target, columns
    contribution = influence.contribution
    off_target, dominant = off_target_share(contribution, f.own), dominant_feature(contribution)
    moves = ~np.isnan(off_target)  # a pair that moves nothing has no dominant feature
    columns["dominant_feature"] = pa.array(f.ids[dominant], pa.int64(), mask=~moves)
    columns["off_target_share"] = real(off_target)
    groups = ((prompts.category, pairs.category), (prompts.label, _labels_of_prompts(f)))
    for name, (group, asked) in zip(OFF_TARGET[1:], groups, strict=True):
        features, has = typical(f.evaluation.active, group, asked)
        share = off_target_share(contribution, features)
        columns[name] = real(np.where(has, share, np.nan))
    columns |= {name: real(v) for name, v in pathways(influence, 1)._asdict().items()}
    columns["unintended"] = moves & ~f.own[np.arange(len(pairs)), dominant]
    return off_target, columns


def _labels_of_prompts(f: Figures) -> list[str | None]:
    """The label that each pair's prompt would have: its own, or what that begins with
    (harmful_refusal)."""
    known = sorted({x for x in f.inputs.prompts.label if x is not None}, key=len, reverse=True)

    def of(label: str | None) -> str | None:
        own = str(label)
        return next((k for k in known if own == k or own.startswith(f"{k}_")), None)

    return [of(label) for label in f.inputs.pairs.label]


def influence_rows(
    influence: dict[str, Influence],
    confidence: dict[str, Confidence],
    pair_ids: list[str],
    ids: Int[np.ndarray, " feature"],
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


def gap_tables(found: list[Gap], ids: Int[np.ndarray, " feature"]) -> dict[str, Table]:
    """`gaps.parquet`, and `gap_features.parquet`: what each feature carries of a gap."""
    plain = (
        "category",
        "label",
        "prompts",
        "others",
        "shows",
        "y",
        "prediction",
        "residual",
        "gap",
    )
    table: dict[str, Any] = {name: [getattr(g, name) for g in found] for name in plain}
    table["refused"] = table["shows"]
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


def agreement_table(f: Figures) -> Table:
    """`agreement.parquet`: how alike the score and the simple figures order the pairs."""
    figures, pairs = {"score": f.score, **f.simple}, f.inputs.pairs
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


def candidate_table(f: Figures) -> Table:
    """`label_candidates.parquet`: prompts that show what a feature responds to, for whoever is to
    name it.

    Top: where it is most active; bottom: where its pre-activation is lowest; contrastive: where it
    is most active among prompts of the label on which it is least active on average.
    """
    e, prompts, labels = f.evaluation, f.inputs.prompts, f.inputs.labels
    named = dict.fromkeys(x for x in prompts.label if x is not None)
    kinds = [np.array([x == name for x in prompts.label]) for name in named]
    rows: dict[str, list[Any]] = {
        k: [] for k in ("feature_id", "label", "kind", "rank", "prompt_id", "activation", "prompt")
    }
    for k, feature in enumerate(e.feature_ids):
        z, order = e.z[:, k], np.lexsort((-e.z[:, k], ~e.active[:, k]))
        chosen = {"top": order[:CANDIDATES], "bottom": order[::-1][:CANDIDATES]}
        if len(kinds) > 1:
            against = min(kinds, key=lambda kind: float(e.x[kind, k].mean()))
            chosen["contrastive"] = order[against[order]][:CANDIDATES]
        for kind, some in chosen.items():
            for rank, n in enumerate(some.tolist()):
                text = None if f.config.redact else prompts.text[n]
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
