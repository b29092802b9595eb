"""From the cache of a run to its results: influence, tables, summary."""

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from smda_jax.data.records import Pairs
from smda_jax.jacobian.evaluation import Evaluation
from smda_jax.policy.gaps import gaps
from smda_jax.policy.influence import Influence, decompose
from smda_jax.policy.interference import Geometry, dominant_feature, separation_auc
from smda_jax.runs import tables
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
    for name, policy in policies.items():
        file = "policy.json" if name == "all" else f"policies/{name}.json"
        run.write_json(file, policy_json(c, e, policy, name, shift.confidence.get(name)))
    simple = {"mean_delta_y": shift.mean_dy, "loss": shift.loss, "gradient_norm": shift.norm}
    simple |= baselines(c, inputs, e, run, W, own, refused, shift.norm, shift.mean_dy)
    found = gaps(e.x, Y, W, refused, prompts.category, prompts.label, seed=c.seed)
    geometry: dict[str, Geometry] = {}
    written = {
        "prompts.parquet": tables.prompt_table(e, prompts, W, refused, c.redact),
        "pairs.parquet": tables.pair_table(e, inputs, score, simple, whole, own.active, sure, c.redact),
        "scores.parquet": {
            "subset": np.repeat(list(policies), len(pairs)), "pair_id": np.tile(pairs.ids, len(policies)),
            "score": np.concatenate(list(shift.score.values())),
        },
        **tables.gap_tables(found, ids),
        "agreement.parquet": tables.agreement_table(pairs, {"score": score, **simple}),
        "label_candidates.parquet": tables.candidate_table(e, prompts, inputs.labels, c.redact),
    }  # fmt: skip
    written["features.parquet"] = tables.feature_table(c, e, W, inputs.labels, pairs, whole, sure)
    if whole is not None:
        written["landing.parquet"] = tables.landing_table(whole, pairs, ids)
        written["interference.parquet"], geometry = tables.interference_table(e, whole, own.active, c.seed)
        run.write_tables("influence.parquet", tables.influence_rows(shift.influence, shift.confidence, pairs.ids, ids))
    for name, columns in written.items():
        run.write_table(name, columns)
    flags, planted = written["pairs.parquet"], np.array([bool(p) for p in pairs.planted])
    flagged, by_dy = flags["flagged"], np.array(flags["flagged_delta_y"].fill_null(False))
    off_target = flags["off_target_share"].to_numpy(zero_copy_only=False)
    dominant = None if whole is None else ids[dominant_feature(whole.contribution)]
    counts: dict[str, int | None] = {
        "by_score": int(flagged.sum()), "by_mean_delta_y": int(by_dy.sum()), "planted": int(planted.sum()),
        "planted_by_mean_delta_y": int((by_dy & planted).sum()),
    }  # fmt: skip
    if np.isnan(shift.mean_dy).all():  # of scores alone it is not known
        counts |= {"by_mean_delta_y": None, "planted_by_mean_delta_y": None}
    return Summary(
        out=str(c.out), engine=blocks.plan.engine, site=f"{e.site.stream} of layer {e.site.layer}", encoder=c.encoder,
        gate=c.gate, feature_ids=e.feature_ids, feature_labels=[inputs.labels.get(i, "") for i in e.feature_ids], weights=W,
        fits={name: p.fit() for name, p in policies.items()}, prompts=len(prompts), pair_ids=pairs.ids, pair_texts=pairs.prompt,
        pair_labels=pairs.label, score=score, mean_delta_y=shift.mean_dy, influence=whole, dominant=dominant,
        off_target=off_target, flagged=flagged, confidence=sure, seed=c.seed,
        auc=_planted_auc(pairs, score, off_target, shift.mean_dy), gaps=found, geometry=geometry, flags=counts,
    )  # fmt: skip


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
    return Shifts(loss, norm, mean_dy, score, shift, {name: own.finish(score[name], mean_dy) for name, own in drawn.items()})


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
