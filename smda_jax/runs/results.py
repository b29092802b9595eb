"""From the cache of a run to its results: policies, influence, tables, and the check of first order."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from smda_jax.data.records import Pairs, Prompts
from smda_jax.jacobian import passes
from smda_jax.jacobian.passes import Evaluation
from smda_jax.policy.influence import Influence, decompose
from smda_jax.policy.interference import dominant_feature, off_target_share, separation_auc
from smda_jax.policy.ridge import Fit, best_threshold, choose_alpha, evaluate, ridge, stratified_split
from smda_jax.policy.selection import subsets
from smda_jax.runs.blocks import Blocks
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs import Inputs
from smda_jax.runs.store import RunFolder
from smda_jax.runs.summary import Summary

ALPHAS = tuple(float(a) for a in np.logspace(-2, 3, 21))  # what --alpha-folds chooses from


@dataclass(frozen=True)
class Policy:
    """The policy of one subset: fitted to all its prompts; `train` and `test` are of the same fit to a part of them."""

    W: np.ndarray
    alpha: float
    threshold: float
    train: Fit
    test: Fit | None


def results(c: Attribute, inputs: Inputs, e: Evaluation, own: np.ndarray, blocks: Blocks, run: RunFolder) -> Summary:
    """Fits the policies, decomposes every pair's effect on them, writes the tables and sums up.

    `own` says which features are active on each pair's own prompt.
    """
    prompts, pairs = inputs.prompts, inputs.pairs
    X, Y = e.x.astype(np.float64), e.y.astype(np.float64)
    refused = observed(prompts, Y)
    rows = subsets(c.subset, prompts.label, refused.tolist(), c.seed)
    policies = {name: _policy(c, prompts, X, Y, refused, i) for name, i in rows.items()}

    n, d = len(pairs), len(e.feature_ids)
    shift = {name: (np.zeros((n, d)), np.zeros((n, d))) for name in rows}
    loss, norm, mean_dy = np.zeros(n), np.zeros(n), np.zeros(n)
    for name, at in blocks:
        block = run.load(name)
        dX, dY = blocks.delta_x(block), block["delta_y"]
        loss[at], norm[at], mean_dy[at] = block["loss"], block["gradient_norm"], dY.astype(np.float64).mean(axis=1)
        for subset, p in policies.items():
            exact = c.engine == "finite"
            part = decompose(X, Y, p.W, dX, dY, p.alpha, exact=exact, rows=rows[subset])
            shift[subset][0][at], shift[subset][1][at] = part.delta_w_x, part.delta_w_y
    influence = {name: Influence(policies[name].W, *shift[name]) for name in rows}

    whole, ids = influence["all"], np.array(e.feature_ids)
    dominant = ids[dominant_feature(whole.contribution)]
    off_target = off_target_share(whole.contribution, own)
    for name, policy in policies.items():
        file = "policy.json" if name == "all" else f"policies/{name}.json"
        run.write_json(file, _policy_json(c, e, policy, name))
    words, flags = pa.string(), pa.bool_()  # given, since a column may hold nothing that shows its type
    run.write_table("prompts.parquet", {
        "prompt_id": prompts.ids, "label": pa.array(prompts.label, words), "category": pa.array(prompts.category, words),
        "refused": refused, "y": Y, "prediction": X @ whole.W,
        "active_features": pa.array([ids[a].tolist() for a in e.active], pa.list_(pa.int64())),
    })  # fmt: skip
    run.write_table("pairs.parquet", {
        "pair_id": pairs.ids, "label": pa.array(pairs.label, words), "category": pa.array(pairs.category, words),
        "planted": pa.array(pairs.planted, flags), "loss": loss, "gradient_norm": norm,
        "mean_delta_y": mean_dy, "score": whole.score, "dominant_feature": dominant,
        "off_target_share": pa.array(off_target, from_pandas=True), "truncated": [t.truncated for t in inputs.pair_tokens],
    })  # fmt: skip
    figures = ("delta_w_x", "delta_w_y", "delta_w", "contribution")
    run.write_table("influence.parquet", {
        "subset": np.repeat(list(rows), n * d), "pair_id": np.tile(np.repeat(pairs.ids, d), len(rows)),
        "feature_id": np.tile(ids, n * len(rows)),
        **{name: np.concatenate([getattr(i, name).ravel() for i in influence.values()]) for name in figures},
    })  # fmt: skip
    return Summary(
        out=str(c.out), engine=c.engine, site=f"{e.site.stream} of layer {e.site.layer}", encoder=c.encoder, gate=c.gate,
        feature_ids=e.feature_ids, feature_labels=[inputs.labels.get(i, "") for i in e.feature_ids], weights=whole.W,
        fits={name: _fit_json(p) for name, p in policies.items()}, category=prompts.category, y=Y, prediction=X @ whole.W,
        refused=refused, pair_ids=pairs.ids, pair_texts=pairs.prompt, pair_labels=pairs.label, score=whole.score,
        mean_delta_y=mean_dy, delta_w_x=whole.delta_w_x, delta_w_y=whole.delta_w_y, dominant=dominant, off_target=off_target,
        auc=_planted_auc(pairs, whole.score, off_target, mean_dy),
    )  # fmt: skip


def observed(prompts: Prompts, y: np.ndarray) -> np.ndarray:
    """Whether a prompt was refused: as recorded, else whether refusing is the likelier answer."""
    return np.array([v > np.log(0.5) if r is None else r for r, v in zip(prompts.refused, y, strict=True)])


def _policy(c: Attribute, prompts: Prompts, X: np.ndarray, Y: np.ndarray, refused: np.ndarray, rows: np.ndarray) -> Policy:
    """Scores a policy on held-out prompts of a subset, then fits it to all of them."""
    strata = [f"{prompts.label[i]} {refused[i]}" for i in rows]
    X, Y, refused = X[rows], Y[rows], refused[rows]
    train, test = stratified_split(strata, c.test_fraction, c.seed)
    alpha = choose_alpha(X[train], Y[train], ALPHAS, c.alpha_folds, c.seed) if c.alpha_folds else c.alpha
    part, W = ridge(X[train], Y[train], alpha), ridge(X, Y, alpha)
    cut = best_threshold(X[train] @ part, refused[train])

    def score(at: np.ndarray) -> Fit:
        return evaluate(X[at] @ part, Y[at], refused[at], cut)

    return Policy(W, alpha, best_threshold(X @ W, refused), score(train), score(test) if len(test) else None)


def _fit_json(p: Policy) -> dict[str, Any]:
    return {"alpha": p.alpha, "train": p.train.as_dict(), "test": p.test and p.test.as_dict()}


def _policy_json(c: Attribute, e: Evaluation, p: Policy, subset: str) -> dict[str, Any]:
    metadata = {
        "subset": subset, "model": c.model, "sae": c.sae, "site": e.site.stream, "layer": e.site.layer,
        "encoder": c.encoder, "targets": [list(s) for s in e.targets.sequences], "chat_date": c.chat_date,
    }  # fmt: skip
    return {
        "schema_version": 1,
        "feature_ids": e.feature_ids,
        "weights": p.W.tolist(),
        "alpha": p.alpha,
        "threshold": p.threshold,
        "metadata": metadata | _fit_json(p),
    }


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
        found[label] = {name: separation_auc(value[own], planted[own]) for name, value in figures.items()}
    return found


def check_first_order(c: Attribute, inputs: Inputs, e: Evaluation, blocks: Blocks, alpha: float) -> dict[str, float | int]:
    """This run's ΔX, ΔY and ΔW against the true step in float64, for pairs drawn with the seed: R² of each."""
    rows = np.sort(np.random.default_rng(c.seed).permutation(len(inputs.pairs))[: c.check_pairs])
    model = inputs.model.astype("float64")
    steps, _ = passes.factors_of(model, [inputs.pair_tokens[i] for i in rows], c.learning_rate, c.loss_scope)
    # A few pairs: compiling for every width of prompts would take longer than the padding.
    reading = passes.read_prompts(model, e.tokens, e.targets, e.site, block=e.block, slack=2.0)
    wide = passes.evaluation_of(
        model, inputs.sae, inputs.prompts, e.tokens, e.targets, e.site, reading, e.feature_ids, c.encoder, e.block
    )
    true = passes.finite(replace(wide, slack=2.0), steps)
    dx, dy = np.zeros(true.x.shape), np.zeros(true.y.shape)
    for name, at in blocks:
        mine, here = np.nonzero(rows[:, None] == at[None])
        if len(mine):
            block = blocks.run.load(name)
            dx[mine], dy[mine] = blocks.delta_x(block)[here], block["delta_y"][here]
    W = ridge(wide.x, wide.y, alpha)
    true_w = decompose(wide.x, wide.y, W, true.x, true.y, alpha, exact=True).delta_w
    linear_w = decompose(wide.x, wide.y, W, dx, dy, alpha).delta_w
    pairs = {"delta_x": (dx, true.x), "delta_y": (dy, true.y), "delta_w": (linear_w, true_w)}
    return {"pairs": len(rows)} | {f"r2_{name}": _r2(*both) for name, both in pairs.items()}


def _r2(prediction: np.ndarray, truth: np.ndarray) -> float:
    varies = np.sum((truth - truth.mean()) ** 2)
    return float(1 - np.sum((truth - prediction) ** 2) / varies) if varies else float("nan")
