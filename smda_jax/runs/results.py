"""From the cache of a run to its results: influence, tables, summary."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from smda_jax.data.records import Pairs
from smda_jax.jacobian.evaluation import Evaluation
from smda_jax.policy.curation import far_off_target, misaligned
from smda_jax.policy.gaps import Gap, gaps
from smda_jax.policy.influence import Influence, decompose
from smda_jax.policy.interference import Geometry, dominant_feature, off_target_share, separation_auc
from smda_jax.policy.pathways import pathways
from smda_jax.runs import analyses
from smda_jax.runs.baselines import OwnPrompts, baselines
from smda_jax.runs.blocks import Blocks
from smda_jax.runs.confidence import Confidence, Resampled
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs import Inputs
from smda_jax.runs.policies import Policy, observed
from smda_jax.runs.store import RunFolder
from smda_jax.runs.summary import Summary


def results(
    c: Attribute,
    inputs: Inputs,
    e: Evaluation,
    own: OwnPrompts,
    policies: dict[str, Policy],
    blocks: Blocks,
    run: RunFolder,
) -> Summary:
    """Decomposes every pair's effect on the policies, writes the tables and sums up."""
    prompts, pairs = inputs.prompts, inputs.pairs
    Y = e.y.astype(np.float64)
    refused = observed(prompts, Y)
    shift = _shifts(c, e, policies, blocks, len(pairs))
    whole, ids, W = shift.influence.get("all"), np.array(e.feature_ids), policies["all"].W
    score, sure = shift.score["all"], shift.confidence.get("all")
    flagged = misaligned(score, pairs.label)
    dominant = None if whole is None else ids[dominant_feature(whole.contribution)]
    off_target = np.full(len(pairs), np.nan) if whole is None else off_target_share(whole.contribution, own.active)
    for name, policy in policies.items():
        file = "policy.json" if name == "all" else f"policies/{name}.json"
        run.write_json(file, policy_json(c, e, policy, name, shift.confidence.get(name)))
    texts = [None] * max(len(prompts), len(pairs)) if c.redact else None
    words, flags, real = pa.string(), pa.bool_(), pa.float64()  # given, since a column may hold nothing that shows its type
    run.write_table("prompts.parquet", {
        "prompt_id": prompts.ids, "label": pa.array(prompts.label, words), "category": pa.array(prompts.category, words),
        "refused": refused, "y": Y, "prediction": e.x.astype(np.float64) @ W,
        "active_features": pa.array([ids[a].tolist() for a in e.active], pa.list_(pa.int64())),
        "prompt": pa.array((texts or prompts.text)[: len(prompts)], words),
    })  # fmt: skip
    simple = {"mean_delta_y": shift.mean_dy, "loss": shift.loss, "gradient_norm": shift.norm}
    simple |= baselines(c, inputs, e, run, W, own, refused, shift.norm, shift.mean_dy)
    run.write_table("pairs.parquet", {
        "pair_id": pairs.ids, "label": pa.array(pairs.label, words), "category": pa.array(pairs.category, words),
        "planted": pa.array(pairs.planted, flags), "score": score,
        **({} if sure is None else {
            "score_low": sure.score.low, "score_high": sure.score.high, "score_sign_stability": sure.score.sign_stability,
        }),
        **{name: pa.array(value, real, from_pandas=True) for name, value in simple.items()},
        "dominant_feature": pa.array([None] * len(pairs) if dominant is None else dominant, pa.int64()),
        "off_target_share": pa.array(off_target, real, from_pandas=True),
        **({} if whole is None else {
            **{name: pa.array(share, real, from_pandas=True) for name, share in pathways(whole, 1)._asdict().items()},
            "unintended": ~own.active[np.arange(len(pairs)), dominant_feature(whole.contribution)],
        }),
        "flagged": flagged,
        **({} if sure is None else {"flag_stability": sure.flag_stability(pairs.label, flagged)}),
        "flagged_quartile": misaligned(score, pairs.label, 0.25), "flagged_off_target": far_off_target(off_target, pairs.label),
        "truncated": [t.truncated for t in inputs.pair_tokens],
        "own_features": pa.array([ids[a].tolist() for a in own.active], pa.list_(pa.int64())),
        "prompt": pa.array((texts or pairs.prompt)[: len(pairs)], words),
        "response": pa.array((texts or pairs.response)[: len(pairs)], words),
    })  # fmt: skip
    run.write_table("scores.parquet", {
        "subset": np.repeat(list(policies), len(pairs)), "pair_id": np.tile(pairs.ids, len(policies)),
        "score": np.concatenate(list(shift.score.values())),
    })  # fmt: skip
    if whole is not None:
        run.write_tables("influence.parquet", _influence_rows(shift.influence, shift.confidence, pairs.ids, ids))
    found = gaps(e.x, Y, W, refused, prompts.category, prompts.label, seed=c.seed)
    geometry = _analyses(c, inputs, e, own, W, whole, sure, found, {"score": score, **simple}, run)
    return Summary(
        out=str(c.out), engine=blocks.plan.engine, site=f"{e.site.stream} of layer {e.site.layer}", encoder=c.encoder,
        gate=c.gate, feature_ids=e.feature_ids, feature_labels=[inputs.labels.get(i, "") for i in e.feature_ids], weights=W,
        fits={name: p.fit() for name, p in policies.items()}, prompts=len(prompts), pair_ids=pairs.ids, pair_texts=pairs.prompt,
        pair_labels=pairs.label, score=score, mean_delta_y=shift.mean_dy, influence=whole, dominant=dominant,
        off_target=off_target, flagged=flagged, confidence=sure, seed=c.seed,
        auc=_planted_auc(pairs, score, off_target, shift.mean_dy), gaps=found, geometry=geometry,
    )  # fmt: skip


def _analyses(
    c: Attribute,
    inputs: Inputs,
    e: Evaluation,
    own: OwnPrompts,
    W: np.ndarray,
    whole: Influence | None,
    sure: Confidence | None,
    found: list[Gap],
    figures: dict[str, np.ndarray],
    run: RunFolder,
) -> dict[str, Geometry]:
    """Writes the tables of the analyses → whether geometry explains which features shift together."""
    tables, geometry = analyses.gap_tables(found, np.array(e.feature_ids)), {}
    tables["agreement.parquet"] = analyses.agreement_table(inputs.pairs, figures)
    tables["label_candidates.parquet"] = analyses.candidate_table(e, inputs.prompts, inputs.labels, c.redact)
    if whole is not None:
        tables["features.parquet"] = analyses.feature_table(c, e, W, inputs.labels, inputs.pairs, whole, sure)
        tables["interference.parquet"], geometry = analyses.interference_table(e, whole, own.active, c.seed)
    for name, columns in tables.items():
        run.write_table(name, columns)
    return geometry


def policy_json(c: Attribute, e: Evaluation, p: Policy, subset: str, sure: Confidence | None = None) -> dict[str, Any]:
    """A policy in the interchange format of the authors' release; `sure` adds intervals to its metadata."""
    metadata = {
        "subset": subset, "model": c.model, "sae": c.sae, "site": e.site.stream, "layer": e.site.layer,
        "encoder": c.encoder, "targets": [list(s) for s in e.targets.sequences], "chat_date": c.chat_date,
    }  # fmt: skip
    intervals = {}
    if sure is not None:
        found = {name: value.tolist() for name, value in asdict(sure.coefficients).items()}
        intervals = {"bootstrap": {"resamples": len(sure.scores), "level": 0.95, **found}}
    return {
        "schema_version": 1,
        "feature_ids": e.feature_ids,
        "weights": p.W.tolist(),
        "alpha": p.alpha,
        "threshold": p.threshold,
        "metadata": metadata | p.fit() | intervals,
    }


class Shifts(NamedTuple):
    """What the blocks say of every pair: by subset its score and, where kept, the influence behind it."""

    loss: np.ndarray
    norm: np.ndarray
    mean_dy: np.ndarray
    score: dict[str, np.ndarray]
    influence: dict[str, Influence]
    confidence: dict[str, Confidence]


def _shifts(c: Attribute, e: Evaluation, policies: dict[str, Policy], blocks: Blocks, n: int) -> Shifts:
    X, Y, d = e.x.astype(np.float64), e.y.astype(np.float64), len(e.feature_ids)
    loss, norm, mean_dy = np.zeros(n), np.zeros(n), np.full(n, np.nan)
    score = {name: np.zeros(n) for name in policies}
    scores_only = blocks.plan.engine == "query" and blocks.plan.keep == "score"
    shift = {} if scores_only else {name: Influence(p.W, *np.zeros((2, n, d))) for name, p in policies.items()}
    # Of a true step there is no first-order shift to refit, and a query has no changes prompt by prompt.
    first_order = blocks.plan.engine in ("forward", "reverse")
    drawn = {n: Resampled.of(X, Y, p, c.bootstrap, c.seed) for n, p in policies.items() if first_order and c.bootstrap}
    for block_name, at in blocks:
        block = blocks.load(block_name)
        loss[at], norm[at] = block["loss"], block["gradient_norm"]
        if scores_only:
            for i, name in enumerate(policies):
                score[name][at] = block["value"][i]
            continue
        if blocks.plan.engine == "query":
            through_x, through_y, mean_dy[at] = blocks.questions.split(block["value"])
        else:
            dX, dY = blocks.delta_x(block), block["delta_y"]
            mean_dy[at] = dY.astype(np.float64).mean(axis=1)
            exact = blocks.plan.engine == "finite"
            parts = [decompose(X, Y, p.W, dX, dY, p.alpha, exact=exact, rows=p.rows) for p in policies.values()]
            through_x, through_y = [p.delta_w_x for p in parts], [p.delta_w_y for p in parts]
            for own, p in zip(drawn.values(), parts, strict=False):  # none, or one for each
                own.add(dX, dY, p.delta_w, at)
        for own, x, y in zip(shift.values(), through_x, through_y, strict=True):
            own.delta_w_x[at], own.delta_w_y[at] = x, y
    score |= {name: i.score for name, i in shift.items()}
    return Shifts(loss, norm, mean_dy, score, shift, {name: own.finish(score[name]) for name, own in drawn.items()})


def _influence_rows(
    influence: dict[str, Influence], confidence: dict[str, Confidence], pair_ids: list[str], ids: np.ndarray
) -> Iterator[dict[str, Any]]:
    """The table's columns, some thousand pairs at a time."""
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


def _planted_auc(pairs: Pairs, score: np.ndarray, off_target: np.ndarray, mean_dy: np.ndarray) -> dict[str, dict[str, float]]:
    """How well each figure finds the pairs recorded as corrupted, within the class of their label.

    Oriented as the paper flags misaligned pairs: a refusal pair is suspicious where its figure is low, a compliance pair where
    it is high; a high off-target share is suspicious in both.
    """
    planted = np.array([bool(p) for p in pairs.planted])
    found: dict[str, dict[str, float]] = {}
    for label in dict.fromkeys(pairs.label):
        own = np.array([x == label for x in pairs.label])
        if label is None or not planted[own].any():
            continue
        sign = -1 if label.endswith("refusal") else 1
        figures = {"score": sign * score, "mean_delta_y": sign * mean_dy, "off_target_share": off_target}
        known = {name: value for name, value in figures.items() if not np.isnan(value).all()}
        found[label] = {name: separation_auc(value[own], planted[own]) for name, value in known.items()}
    return found
