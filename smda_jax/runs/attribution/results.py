"""From the cache of a run to its results: influence, tables, summary."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from smda_jax.policy.bootstrap import LEVEL
from smda_jax.policy.gaps import gaps
from smda_jax.policy.held_out import Policy
from smda_jax.policy.influence import Influence
from smda_jax.policy.interference import Geometry, dominant_feature, separation_auc
from smda_jax.runs.attribution import feature_tables, tables
from smda_jax.runs.attribution.baselines import Known, OwnPrompts, baselines
from smda_jax.runs.attribution.confidence import Confidence, Resampled
from smda_jax.runs.attribution.policies import observed
from smda_jax.runs.attribution.runner import Blocks
from smda_jax.runs.attribution.summary import Summary
from smda_jax.runs.config import Attribute
from smda_jax.runs.folder.policies import StoredPolicy
from smda_jax.runs.inputs.load import Inputs


@dataclass(frozen=True)
class Found:
    """What a run has found when its blocks are complete."""

    config: Attribute
    inputs: Inputs
    own: OwnPrompts
    policies: dict[str, Policy]
    blocks: Blocks


def results(run: Found) -> Summary:
    """Decomposes every pair's effect on the policies, writes the tables and sums up."""
    c, inputs, own_prompts, policies = run.config, run.inputs, run.own, run.policies
    e, folder = run.blocks.job.evaluation, run.blocks.folder
    prompts, pairs = inputs.prompts, inputs.pairs
    Y, shows = e.y.astype(np.float64), observed(prompts, e)
    shift = _shifts(run)
    whole, ids, W = shift.influence.get("all"), np.array(e.feature_ids), policies["all"].W
    score, sure = shift.score["all"], shift.confidence.get("all")
    for name, policy in policies.items():
        file = "policy.json" if name == "all" else f"policies/{name}.json"
        folder.write_json(file, policy_json(run, name, policy, shift.confidence.get(name)))
    first_order = run.blocks.engine.offer.first_order
    update = run.blocks.job.stepping.update
    known = Known(e, own_prompts, W, shows, shift.norm, shift.mean_dy, update, first_order)
    simple = {"mean_delta_y": shift.mean_dy, "loss": shift.loss, "gradient_norm": shift.norm}
    simple |= baselines(c, inputs, known, folder)
    found = gaps(e.x, Y, W, shows, prompts.category, prompts.label, seed=c.seed)
    geometry: dict[str, Geometry] = {}
    f = tables.Figures(c, inputs, e, own_prompts.active, W, shows, score, simple, whole, sure)
    written = {
        "prompts.parquet": tables.prompt_table(f),
        "pairs.parquet": tables.pair_table(f),
        "scores.parquet": {
            "subset": np.repeat(list(policies), len(pairs)),
            "pair_id": np.tile(pairs.ids, len(policies)),
            "score": np.concatenate(list(shift.score.values())),
        },
        **tables.gap_tables(found, ids),
        "agreement.parquet": tables.agreement_table(f),
        "label_candidates.parquet": tables.candidate_table(f),
        "features.parquet": feature_tables.feature_table(f),
    }
    if whole is not None:
        written["landing.parquet"] = feature_tables.landing_table(whole, pairs, ids)
        between, geometry = feature_tables.interference_table(f, whole)
        written["interference.parquet"] = between
        rows = tables.influence_rows(shift.influence, shift.confidence, pairs.ids, ids)
        folder.write_tables("influence.parquet", rows)
    for name, columns in written.items():
        folder.write_table(name, columns)
    flags, planted = written["pairs.parquet"], np.array([bool(p) for p in pairs.planted])
    flagged, by_dy = flags["flagged"], np.array(flags["flagged_delta_y"].fill_null(False))
    off_target = flags["off_target_share"].to_numpy(zero_copy_only=False)
    dominant = None if whole is None else ids[dominant_feature(whole.contribution)]
    counts: dict[str, int | None] = {
        "by_score": int(flagged.sum()),
        "by_mean_delta_y": int(by_dy.sum()),
        "planted": int(planted.sum()),
        "planted_by_mean_delta_y": int((by_dy & planted).sum()),
    }
    if np.isnan(shift.mean_dy).all():  # of scores alone it is not known
        counts |= {"by_mean_delta_y": None, "planted_by_mean_delta_y": None}
    return Summary(
        out=str(c.out),
        engine=run.blocks.engine.offer.name,
        site=f"{e.site.stream} of layer {e.site.layer}",
        encoder=c.encoder,
        gate=c.gate,
        feature_ids=e.feature_ids,
        feature_labels=[inputs.labels.get(i, "") for i in e.feature_ids],
        weights=W,
        fits={name: p.fit() for name, p in policies.items()},
        prompts=len(prompts),
        pair_ids=pairs.ids,
        pair_texts=pairs.prompt,
        pair_labels=pairs.label,
        gradient_norm=shift.norm,
        score=score,
        mean_delta_y=shift.mean_dy,
        influence=whole,
        dominant=dominant,
        off_target=off_target,
        flagged=flagged,
        confidence=sure,
        seed=c.seed,
        auc=_planted_auc(inputs, score, off_target, shift.mean_dy),
        gaps=found,
        geometry=geometry,
        flags=counts,
    )


def policy_json(
    run: Found, subset: str, policy: Policy, sure: Confidence | None = None
) -> dict[str, Any]:
    """A policy in the interchange format of the authors' release, intervals in its metadata."""
    c, e = run.config, run.blocks.job.evaluation
    metadata = {
        "subset": subset,
        "model": c.model,
        "sae": c.sae,
        "site": e.site.stream,
        "layer": e.site.layer,
        "encoder": c.encoder,
        "behaviour": e.behaviour.name,
        **e.behaviour.settings,
        "chat_date": c.chat_date,
    }
    intervals = {}
    if sure is not None:
        order = np.argsort(e.feature_ids, kind="stable")  # as the file has the features
        found = {name: v[order].tolist() for name, v in asdict(sure.coefficients).items()}
        intervals = {"bootstrap": {"resamples": len(sure.scores), "level": LEVEL, **found}}
    stored = StoredPolicy(
        e.feature_ids,
        policy.W.tolist(),
        policy.alpha,
        policy.threshold,
        metadata=metadata | policy.fit() | intervals,
    )
    return stored.as_json()


class Shifts(NamedTuple):
    """What the blocks say of every pair: by subset its score and, where kept, the influence."""

    loss: Float[np.ndarray, " pair"]
    norm: Float[np.ndarray, " pair"]
    mean_dy: Float[np.ndarray, " pair"]
    score: dict[str, Float[np.ndarray, " pair"]]
    influence: dict[str, Influence]
    confidence: dict[str, Confidence]


def _shifts(run: Found) -> Shifts:
    c, e, policies = run.config, run.blocks.job.evaluation, run.policies
    X, Y, d, n = (
        e.x.astype(np.float64),
        e.y.astype(np.float64),
        len(e.feature_ids),
        len(run.inputs.pairs),
    )
    loss, norm, mean_dy = np.zeros(n), np.zeros(n), np.full(n, np.nan)
    score = {name: np.zeros(n) for name in policies}
    influence: dict[str, Influence] = {}
    drawn: dict[str, Resampled] = {}
    for at, stored, found in run.blocks.shifts():
        loss[at], norm[at] = stored["loss"], stored["gradient_norm"]
        mean_dy[at] = found.mean_delta_y
        for i, name in enumerate(policies):
            score[name][at] = found.scores[i]
        if found.delta_w_x is None or found.delta_w_y is None:
            continue
        influence = influence or {
            name: Influence(p.W, *np.zeros((2, n, d))) for name, p in policies.items()
        }
        if found.changes is not None and c.bootstrap and not drawn:
            args = (c.bootstrap, c.seed)
            drawn = {name: Resampled.of(X, Y, p, *args) for name, p in policies.items()}
        for i, (name, shift_of) in enumerate(influence.items()):
            shift_of.delta_w_x[at], shift_of.delta_w_y[at] = found.delta_w_x[i], found.delta_w_y[i]
            if found.changes is not None and name in drawn:
                delta_w = found.delta_w_x[i] + found.delta_w_y[i]
                drawn[name].add(*found.changes, delta_w, at)
    score |= {name: i.score for name, i in influence.items()}
    confidence = {name: shift_of.finish(score[name], mean_dy) for name, shift_of in drawn.items()}
    return Shifts(loss, norm, mean_dy, score, influence, confidence)


def _planted_auc(
    inputs: Inputs,
    score: Float[np.ndarray, " pair"],
    off_target: Float[np.ndarray, " pair"],
    mean_dy: Float[np.ndarray, " pair"],
) -> dict[str, dict[str, float]]:
    """How well each figure finds the pairs recorded as corrupted, within the class of their label.

    Oriented as the paper flags misaligned pairs: one that is expected to raise the behaviour is
    suspicious where its figure is low, another where it is high; a high off-target share is
    suspicious in both. Nothing is said by figures of pairs of which nothing is expected.
    """
    pairs = inputs.pairs
    planted = np.array([bool(p) for p in pairs.planted])
    sign = np.array([{True: -1.0, False: 1.0, None: np.nan}[x] for x in inputs.polarity.raises])
    figures = {
        "score": sign * score,
        "mean_delta_y": sign * mean_dy,
        "off_target_share": off_target,
    }
    found: dict[str, dict[str, float]] = {}
    for label in dict.fromkeys(pairs.label):
        in_class = np.array([x == label for x in pairs.label])
        if label is None or not planted[in_class].any():
            continue
        own = {name: value[in_class] for name, value in figures.items()}
        found[label] = {
            name: separation_auc(value, planted[in_class])
            for name, value in own.items()
            if not np.isnan(value).all()
        }
    return found
