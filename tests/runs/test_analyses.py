"""Analyses against NumPy, and through the command against torch."""

import json

import numpy as np
import oracle
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import spearmanr
from support import IDS, PAIRS, PROMPTS, run, table

from smda_jax.data.chat import Chat
from smda_jax.policy.agreement import rank_agreement
from smda_jax.policy.curation import far_off_target
from smda_jax.policy.gaps import gaps
from smda_jax.policy.influence import Influence
from smda_jax.policy.interference import correlations, cosines, explains, landing, typical
from smda_jax.policy.pathways import pathways


def test_agreement_is_within_class_too(rng):
    label = ["a"] * 6 + ["b"] * 6
    score = np.array([*np.arange(6.0), *np.arange(100.0, 106.0)])
    by_label = (
        np.array([0.0] * 6 + [1.0] * 6) + np.array([5, 4, 3, 2, 1, 0] * 2) / 10
    )  # the label's order, reversed within
    rows = {
        (r.among, r.other): r
        for r in rank_agreement(
            {"score": score, "label": by_label, "flat": np.ones(12)}, label, top=3
        )
    }
    assert rows["all", "label"].spearman > 0.4
    assert rows["a", "label"].spearman == pytest.approx(-1)
    assert rows["b", "label"].kendall == pytest.approx(-1)
    assert (rows["a", "label"].overlap, rows["a", "label"].expected) == (0.0, 0.5)
    assert (rows["all", "label"].top, rows["all", "label"].overlap) == (3, 0.0)
    assert np.isnan(rows["all", "flat"].spearman)
    # Equals share their places: of figures that know nothing of each other the overlap is what is
    # expected.
    few = np.repeat([0.0, 1.0, 2.0], 20)
    drawn = [
        rank_agreement({"a": rng.permutation(few), "b": rng.permutation(few)}, [None] * 60)[0]
        for _ in range(200)
    ]
    assert np.mean([r.overlap for r in drawn]) == pytest.approx(drawn[0].expected, rel=0.1)
    missing = np.where(np.arange(12) < 3, np.nan, score)
    assert rank_agreement({"score": score, "other": missing}, label)[0].pairs == 9
    assert {r.among for r in rank_agreement({"score": score, "other": score**3}, ["a"] * 12)} == {
        "all"
    }
    halves = {r.among for r in rank_agreement({"score": score, "other": score**3}, ["a", None] * 6)}
    assert halves == {"all", "a", "unlabelled"}


def test_a_gap_is_what_features_carry_and_what_the_policy_does_not_know(rng):
    X, W = np.maximum(rng.normal(size=(90, 5)), 0), rng.normal(size=5)
    category, label = ["odd", "plain", "calm"] * 30, ["harmful", "harmful", "harmless"] * 30
    Y = X @ W + 0.1 * rng.normal(size=90) - 3 * np.array([c == "odd" for c in category])
    found = gaps(X, Y, W, Y > -1, category, label)
    assert [g.category for g in found] == [
        "odd",
        "plain",
        "calm",
    ]  # the calm ones have none to be compared with
    odd, plain = (np.array([c == name for c in category]) for name in ("odd", "plain"))
    assert found[0].gap == pytest.approx(Y[odd].mean() - Y[plain].mean())
    assert found[0].gap == pytest.approx(
        found[0].carried.sum() + found[0].residual - found[1].residual
    )
    assert found[0].interval.low[2] < found[0].gap < found[0].interval.high[2] < 0
    # A mean of n prompts is uncertain by its standard error: 95 % is 3.92 of them wide.
    width = found[0].interval.high[0] - found[0].interval.low[0]
    assert width == pytest.approx(3.92 * Y[odd].std() / 30**0.5, rel=0.15)
    assert found[0].shows == (Y > -1)[odd].mean()
    assert np.isnan(found[2].gap)
    assert not gaps(X, Y, W, Y > -1, [None] * 90, label)
    # A few prompts say what they are, not how sure that is, and come last.
    rare = gaps(
        X, Y, W, Y > -1, ["rare" if i in (0, 3) else c for i, c in enumerate(category)], label
    )
    assert [(g.category, g.prompts) for g in rare] == [
        ("odd", 28),
        ("plain", 30),
        ("rare", 2),
        ("calm", 30),
    ]
    assert np.isnan([rare[2].interval.low, rare[2].interval.high]).all()
    # Of many prompts the resamples' means are drawn at once.
    many = gaps(
        np.tile(X, (20, 1)), np.tile(Y, 20), W, np.tile(Y > -1, 20), category * 20, label * 20
    )
    width = many[0].interval.high - many[0].interval.low
    assert width[0] == pytest.approx(3.92 * Y[odd].std() / 600**0.5, rel=0.15)
    assert width[1] == pytest.approx(3.92 * (Y - X @ W)[odd].std() / 600**0.5, rel=0.15)


def test_pathways_that_undo_each_other():
    i = Influence(
        np.array([1.0, -2.0]),
        np.array([[3.0, 1.0], [0.0, 0.0]]),
        np.array([[-3.0, 1.0], [0.0, 0.0]]),
    )
    by_pair, by_feature = pathways(i, 1), pathways(i, 0)
    assert by_pair.through_x[0] == pytest.approx(0.5)
    assert by_pair.cancellation[0] == pytest.approx(1 - 4 / 10)
    assert np.isnan(by_pair.through_x[1])
    np.testing.assert_allclose(by_feature.cancellation, [1, 0])


def test_where_effects_fall(rng):
    contribution = np.array([[3.0, -1.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    own = np.array([[True, False, False], [True, True, False], [True, True, True]])
    got = landing(contribution, own)
    np.testing.assert_allclose(got[:2], [[0.375, 0.125, 0.5], [0.0, 0.0, 1.0]])
    assert np.isnan(got[2]).all()
    by_class = landing(contribution, np.array([[True, False], [True, False], [False, True]]))
    np.testing.assert_allclose(by_class[0], [0.375, 0.125, 0.5])
    assert np.isnan(by_class[1]).all()
    assert np.isnan(correlations(np.full((7, 2), [0.1, 0.3]))).all()
    off = np.array([0.1, 0.2, np.nan, 0.9, 0.9])
    assert far_off_target(off, ["a", "a", "a", "a", "b"], 0.6).tolist() == [
        False,
        False,
        False,
        True,
        False,
    ]
    columns = rng.normal(size=(40, 6))
    np.testing.assert_allclose(correlations(columns), np.corrcoef(columns.T))
    np.testing.assert_allclose(
        cosines(columns)[1, 4],
        columns[:, 1] @ columns[:, 4] / np.prod(np.linalg.norm(columns[:, [1, 4]], axis=0)),
    )


def test_features_of_a_category_are_those_active_on_half_of_its_prompts():
    active = np.array([[True, False], [True, True], [False, False], [True, True]])
    features, has = typical(active, ["a", "a", "a", None], ["a", "b", None, "a"])
    assert features.tolist() == [[True, False], [False, False], [False, False], [True, False]]
    assert has.tolist() == [True, False, False, True]


def test_geometry_explains_what_it_made_and_nothing_else(rng):
    a = np.corrcoef(rng.normal(size=(12, 30)))
    like, upper = np.corrcoef(rng.normal(size=(12, 30))) + 3 * a, np.triu_indices(12, 1)
    found = explains(a, like)
    assert found.spearman == pytest.approx(spearmanr(a[upper], like[upper])[0])
    assert found.p == pytest.approx(0.001)
    # Where nothing is to be found, p is as often below a bound as the bound says.
    p = [explains(a, np.corrcoef(rng.normal(size=(12, 30))), orders=99).p for _ in range(200)]
    assert np.mean(np.array(p) <= 0.2) < 0.2 + 3 * (0.16 / 200) ** 0.5
    silent = a.copy()
    silent[3] = silent[:, 3] = np.nan
    assert explains(silent, like).features == 11
    assert np.isnan(explains(a[:3, :3], like[:3, :3]).p)


def test_a_run_writes_its_analyses(files, tmp_path):
    out = run(
        files,
        tmp_path / "run",
        "--dtype=float64",
        "--engine=reverse",
        "--bootstrap=50",
        "--neuronpedia=m/s",
    )
    pairs, d = table(out, "pairs.parquet"), len(IDS)
    # Length of the gradient of mean Y, and its angle with each pair's, by torch.
    model, chat = oracle.load_double(files["model"]), Chat(files["model"])
    sequences = [chat.encode(q) for q in ("I can't", "I can\u2019t")]
    prompts = [chat.prompt(p, 512) for p, _ in PROMPTS]

    def behaviour(ids):
        parts = []
        for q in sequences:
            logp = model(torch.tensor([ids + q])).logits[0].log_softmax(-1)
            parts.append(torch.stack([logp[len(ids) - 1 + t, q[t]] for t in range(len(q))]).sum())
        return torch.logsumexp(torch.stack(parts), 0)

    mean_y = torch.stack([behaviour(list(p.ids)) for p in prompts]).mean()
    towards = torch.autograd.grad(mean_y, list(model.parameters()))
    length = sum(float((g**2).sum()) for g in towards) ** 0.5
    for i, (prompt, response, _) in enumerate(PAIRS):
        t = chat.pair(prompt, response, 512)
        _, g = oracle.gradient(model, t.ids, t.response)
        dot = -sum(float((a * b).sum()) for a, b in zip(towards, g, strict=True))
        assert pairs["gradient_dot"][i] == pytest.approx(dot, rel=1e-6)
        assert pairs["gradient_cosine"][i] == pytest.approx(
            dot / length / pairs["gradient_norm"][i], rel=1e-6
        )
        assert pairs["response_tokens"][i] == len(t.ids) - t.response
    # Activations of the pairs' own prompts.
    h = np.stack(
        [
            oracle.read(model, p.ids, p.read_at, ("resid_post", 1), sequences)[0]
            for p in [chat.prompt(p, 512) for p, *_ in PAIRS]
        ]
    )
    other = np.stack(
        [oracle.read(model, p.ids, p.read_at, ("resid_post", 1), sequences)[0] for p in prompts]
    )
    refused = table(out, "prompts.parquet")["refused"]
    unit = [
        v / np.linalg.norm(v, axis=1, keepdims=True)
        for v in (h, other[refused] if refused.any() else other)
    ]
    np.testing.assert_allclose(pairs["repsim"], (unit[0] @ unit[1].T).mean(axis=1), rtol=1e-6)
    features, interference = table(out, "features.parquet"), table(out, "interference.parquet")
    whole = features["class"] == "all"
    assert features["feature_id"][whole].tolist() == list(IDS)
    assert features["share"][whole].sum() == pytest.approx(1)
    assert features["link"][0] == f"https://www.neuronpedia.org/m/s/{IDS[0]}"
    assert len(interference["co_shift"]) == d * d
    influence = table(out, "influence.parquet")
    shifts = influence["delta_w"].reshape(len(PAIRS), d)
    moving = shifts.std(axis=0) > 0
    got = interference["co_shift"].reshape(d, d)[np.ix_(moving, moving)].astype(float)
    np.testing.assert_allclose(got, np.corrcoef(shifts[:, moving].T), atol=1e-9)
    candidates = pq.read_table(out / "label_candidates.parquet").to_pylist()
    top = [row for row in candidates if row["feature_id"] == IDS[0] and row["kind"] == "top"]
    assert [row["activation"] for row in top] == sorted(
        (row["activation"] for row in top), reverse=True
    )
    assert set(json.loads((out / "run.json").read_text())["summary"]["geometry"]) == {
        "encoder_cosine",
        "activation_correlation",
    }


def test_a_redacted_run_holds_no_text(files, tmp_path):
    out = run(files, tmp_path / "run", "--redact", "--bootstrap=0")
    for path in [p for p in out.rglob("*") if p.is_file()]:
        content = (
            path.read_bytes()
            if path.suffix != ".parquet"
            else repr(pq.read_table(path).to_pydict()).encode()
        )
        for text in [PROMPTS[0][0], PAIRS[0][0], PAIRS[0][1]]:
            assert text.encode() not in content, path
