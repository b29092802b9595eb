"""Policy, influence and selection against NumPy."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smda_jax.errors import InputError
from smda_jax.policy.influence import decompose
from smda_jax.policy.interference import dominant_feature, off_target_share, separation_auc
from smda_jax.policy.ridge import best_threshold, choose_alpha, evaluate, ridge, stratified_split
from smda_jax.policy.selection import contrastive, subsets


def problem(rng, prompts=31, features=7, pairs=3):
    X = np.maximum(rng.normal(size=(prompts, features)), 0)
    return (
        X,
        rng.normal(size=prompts) - 2,
        rng.normal(size=(pairs, prompts, features)),
        rng.normal(size=(pairs, prompts)),
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_ridge_is_solved_in_float64_whatever_comes_in(rng, dtype):
    X, Y, _, _ = problem(rng)
    X, Y = X.astype(dtype), Y.astype(dtype)
    got = ridge(X, Y, 5.0)
    assert got.dtype == np.float64
    np.testing.assert_allclose(
        got, oracle.ridge(X.astype(np.float64), Y.astype(np.float64), 5.0), rtol=1e-9
    )


def test_an_ill_conditioned_gram_matrix_keeps_its_leading_digits(rng):
    X = rng.normal(size=(4000, 1)) + 1e-3 * rng.normal(size=(4000, 12)) + 50
    Y = rng.normal(size=4000)
    np.testing.assert_allclose(ridge(X, Y, 1e-2), oracle.ridge(X, Y, 1e-2), rtol=1e-3)


def test_a_singular_policy_is_refused():
    with pytest.raises(InputError, match="cannot be factored"):
        ridge(np.zeros((4, 2)), np.ones(4), 0.0)


def test_pathways_are_derivatives_of_the_ridge_solution(rng):
    X, Y, dX, dY = problem(rng)
    alpha, eps = 0.7, 1e-5
    got = decompose(X, Y, ridge(X, Y, alpha), dX, dY, alpha)
    for i in range(3):
        x = (oracle.ridge(X + eps * dX[i], Y, alpha) - oracle.ridge(X - eps * dX[i], Y, alpha)) / (
            2 * eps
        )
        y = (oracle.ridge(X, Y + eps * dY[i], alpha) - oracle.ridge(X, Y - eps * dY[i], alpha)) / (
            2 * eps
        )
        np.testing.assert_allclose(got.delta_w_x[i], x, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(got.delta_w_y[i], y, rtol=1e-7, atol=1e-9)
    W = oracle.ridge(X, Y, alpha)
    np.testing.assert_allclose(got.contribution, W * (got.delta_w_x + got.delta_w_y))
    np.testing.assert_allclose(got.score, got.contribution.sum(1))


def test_the_exact_change_is_that_of_a_refitted_policy(rng):
    X, Y, dX, dY = problem(rng)
    alpha = 0.7
    for size in (1e-6, 0.3):
        got = decompose(X, Y, ridge(X, Y, alpha), size * dX, size * dY, alpha, exact=True)
        for i in range(3):
            base = oracle.ridge(X, Y, alpha)
            x = oracle.ridge(X + size * dX[i], Y, alpha) - base
            both = oracle.ridge(X + size * dX[i], Y + size * dY[i], alpha) - base
            np.testing.assert_allclose(got.delta_w_x[i], x, rtol=1e-6, atol=1e-13)
            np.testing.assert_allclose(got.delta_w[i], both, rtol=1e-6, atol=1e-13)


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_the_threshold_is_the_exact_optimum(rows):
    p, r = np.array([float(v) for v, _ in rows]), np.array([b for _, b in rows])
    cut = best_threshold(p, r)
    cuts = [p.min() - 1, *[(a + b) / 2 for a in p for b in p], *p]
    assert ((p > cut) == r).mean() == max(((p > c) == r).mean() for c in cuts)


def test_fit_figures(rng):
    p, Y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 4.0, 9.0])
    fit = evaluate(p, Y, np.array([False, True, False, True]), 0.5)
    assert (fit.accuracy, fit.precision, fit.recall, fit.majority) == (0.75, 2 / 3, 1.0, 0.5)
    assert fit.f1 == pytest.approx(0.8)
    assert fit.spearman == pytest.approx(1)
    assert fit.r2 == pytest.approx(1 - (0 + 0 + 4 + 36) / np.sum((Y - 3.5) ** 2))
    nothing = evaluate(p, np.ones(4), np.zeros(4, bool), 9.0)
    assert np.isnan(
        [nothing.precision, nothing.recall, nothing.f1, nothing.r2, nothing.spearman]
    ).all()


def test_alpha_is_chosen_on_held_out_folds(rng):
    X = rng.normal(size=(60, 20))
    noise, signal = rng.normal(size=60), X @ rng.normal(size=20)
    assert choose_alpha(X, signal, (0.01, 1.0, 1e4), 5, 0) == 0.01
    assert choose_alpha(X, noise, (0.01, 1.0, 1e4), 5, 0) == 1e4


def test_the_split_keeps_every_stratum(rng):
    strata = ["a"] * 50 + ["b"] * 10
    train, test = stratified_split(strata, 0.2, 3)
    assert sorted([*train, *test]) == list(range(60))
    assert sum(strata[i] == "b" for i in test) == 2
    assert len(test) == 12
    np.testing.assert_array_equal(stratified_split(strata, 0.2, 3)[1], test)
    assert not np.array_equal(stratified_split(strata, 0.2, 4)[1], test)


def test_subsets_of_the_paper():
    label = ["harmful"] * 10 + ["harmless"] * 4
    refused = [True] * 7 + [False] * 7
    got = subsets((), label, refused, 0)
    assert list(got) == ["all", "natural", "balanced", "harmful+harmless"]
    assert got["natural"].tolist() == list(range(10))
    assert sum(i < 7 for i in got["balanced"]) == 3
    assert len(got["balanced"]) == 6
    assert sum(i < 10 for i in got["harmful+harmless"]) == 4
    assert len(got["harmful+harmless"]) == 8
    drawn = subsets(("random:5", "random:5:9"), label, refused, 0)
    assert len(drawn["random:5"]) == 5
    assert drawn["random:5"].tolist() != drawn["random:5:9"].tolist()
    assert list(subsets((), [None] * 3, [True] * 3, 0)) == ["all"]
    for name, message in (
        ("everything", "unknown name"),
        ("random:99", "asks for 99"),
        ("random:x", "unknown name"),
    ):
        with pytest.raises(InputError, match=message):
            subsets((name,), label, refused, 0)
    with pytest.raises(InputError, match="natural is empty"):
        subsets(("natural",), [None] * 3, [True] * 3, 0)


def test_contrastive_selection():
    assert contrastive(np.array([0.2, -0.3, 0.05]), 0.1).tolist() == [0, 1]
    with pytest.raises(InputError, match=r"largest is 0\.3"):
        contrastive(np.array([0.2, -0.3]), 0.5)


def test_interference_figures():
    c = np.array([[1.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
    own = np.array([[True, False, True], [True, True, True]])
    assert dominant_feature(c)[0] == 1
    share = off_target_share(c, own)
    assert share[0] == 0.75
    assert np.isnan(share[1])
    assert separation_auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False])) == 1.0
    assert separation_auc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    assert np.isnan(separation_auc(np.array([1.0]), np.array([True])))
    assert (
        separation_auc(np.array([1.0, 2.0, np.nan, 3.0]), np.array([False, False, True, True]))
        == 1.0
    )
