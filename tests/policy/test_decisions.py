"""Rules, controls, and how figures are held against training: arrays in, arrays out."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from smda_jax.errors import InputError
from smda_jax.policy.counterfactual import average_precision, ceiling, lds, membership
from smda_jax.policy.rules import Judged, choose, matched_controls

RAISES = [True, True, True, False, False, False]
DELTA = [0.5, -0.3, 0.4, 0.2, -0.5, -0.1]


def judged(**columns) -> Judged:
    figures = {
        "mean_delta_y": np.array(DELTA),
        "score": np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        "flag_delta_y_stability": np.array([1, 0.99, 0.6, 0.97, 0.9, 0.2]),
        "off_target_share": np.array([0.1, 0.2, 0.9, 0.3, 0.1, 0.8]),
    }
    label: list[str | None] = ["a", "a", "a", "b", "b", "b"]
    known = {"label": label, "category": list("xxyyzz"), "planted": [None, True] + [False] * 4}
    return Judged(list(RAISES), figures, label, known | columns)


@pytest.mark.parametrize(
    ("rule", "rows"),
    [
        # Below the median of those that should lower it (-0.1); above that of the others (0.4).
        ("mean_delta_y", [1]),
        ("score", [0, 1, 2, 3, 4, 5]),
        ("not score", []),
        ("quantile:1", [1]),  # all but what is above their highest
        ("top:2", [1, 3]),  # -0.3 where it should rise, +0.2 where it should fall
        ("top:2 and stable:0.98", [1]),
        ("off_target:0.5", [2, 5]),
        ("label:b and not category:z", [3]),
        ("planted or category:z", [1, 4, 5]),
        ("column:human", [0, 2]),
        ("column:human=no or top:1", [1, 3]),
    ],
)
def test_rules_choose(rule: str, rows: list[int]) -> None:
    human = ["yes", "no", "1", "no", None, ""]
    chosen, reasons = choose(rule, judged(human=human))
    if rule == "quantile:1":
        up = np.array(DELTA)[:3] < max(DELTA[3:])
        down = np.array(DELTA)[3:] > min(DELTA[:3])
        rows = np.flatnonzero([*up, *down]).tolist()
    assert np.flatnonzero(chosen).tolist() == rows
    assert [bool(reason) for reason in reasons] == chosen.tolist()


def test_reasons_say_which_part_of_a_rule_held() -> None:
    _, reasons = choose("top:1 or planted and stable:0.9", judged())
    assert reasons == ["", "top:1; planted and stable:0.9", "", "", "", ""]


def test_what_should_fall_is_harmful_where_it_rises() -> None:
    """The polarity is the data's: with the sides exchanged other pairs are the harmful ones."""
    on = judged()
    other = Judged([not x for x in RAISES], on.figures, on.label, on.columns)
    first, second = (np.flatnonzero(choose("top:1", one)[0])[0] for one in (on, other))
    assert (first, second) == (1, 0)


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ("nothing", "nothing"),
        ("top", "value"),
        ("top:0", "number"),
        ("top:x", "number"),
        ("planted:1", "no value"),
        ("quantile:2", "share"),
        ("column:lacking", "lacking"),
        ("column:category", "true nor false"),
        ("mean_delta_y and", "mean_delta_y and"),
    ],
)
def test_rules_that_cannot_be_read_are_refused(rule: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        choose(rule, judged())


def test_no_pair_is_harmful_where_nothing_is_expected() -> None:
    on = judged()
    unknown = Judged([None] * 6, on.figures, on.label, on.columns)
    for rule in ("mean_delta_y", "top:2", "quantile:0.3"):
        with pytest.raises(InputError, match="--raises"):
            choose(rule, unknown)


def test_controls_leave_out_as_many_of_each_label() -> None:
    chosen = np.array([True, True, False, True, False, False])
    label: list[str | None] = ["a", "a", "a", "b", "b", None]
    draws = matched_controls(chosen, label, 40, 3)
    for control in draws:
        assert (control[:3].sum(), control[3:5].sum(), control[5]) == (2, 1, False)
    assert len({tuple(control) for control in draws}) == 6  # all there are
    again = matched_controls(chosen, label, 2, 3)
    assert [c.tolist() for c in again] == [c.tolist() for c in draws[:2]]


def test_lds_is_the_rank_correlation_of_sums() -> None:
    rng = np.random.default_rng(0)
    sets = [np.sort(rng.permutation(20)[:9]) for _ in range(15)]
    figure, realised = rng.normal(size=(20, 3)), rng.normal(size=(15, 3))
    realised[:, 1] = [figure[own, 1].sum() for own in sets]
    found = lds(membership(sets, 20) @ figure, realised, 200)
    for target in range(3):
        sums = [figure[own, target].sum() for own in sets]
        want = spearmanr(sums, realised[:, target])[0]
        assert found.value[target] == pytest.approx(want)
    assert found.value[1] == pytest.approx(1)
    value, low, high = found.summed_up(lambda v: v.min(axis=1), [0, 2])
    assert value == pytest.approx(found.value[[0, 2]].min())
    assert low < value < high + 1e-12
    assert lds(np.ones((15, 3)), realised, 0).value.tolist() == [0, 0, 0]


def test_a_pair_without_a_figure_moves_no_border_and_is_chosen_by_nothing() -> None:
    on = judged()
    figure = np.array([*DELTA, np.nan])
    label: list[str | None] = [*on.label, "b"]
    more = Judged([*RAISES, False], {"mean_delta_y": figure}, label, {})
    assert np.flatnonzero(choose("mean_delta_y", more)[0]).tolist() == [1]
    assert not choose("not mean_delta_y", more)[0][6]
    assert not choose("not top:1", more)[0][6]


@pytest.mark.parametrize("orders", [2, 4])
def test_the_ceiling_is_that_of_a_mean_of_orders(orders: int) -> None:
    """√(nr / (1 + (n − 1) r)) is how a noiseless predictor correlates with a mean of n runs."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(4000, 1))
    runs = truth[:, None] + rng.normal(size=(4000, orders, 1))
    found = ceiling(runs)
    reached = spearmanr(truth[:, 0], runs.mean(axis=1)[:, 0])[0]
    assert found.value[0] == pytest.approx(reached, abs=0.02)


def test_average_precision_is_its_definition() -> None:
    rng = np.random.default_rng(2)
    figure, wanted = rng.integers(0, 6, 30).astype(float), rng.uniform(size=30) < 0.3
    total, before = 0.0, 0.0
    for cut in sorted(set(figure.tolist()), reverse=True):
        above = figure >= cut
        recall = (above & wanted).sum() / wanted.sum()
        total += (recall - before) * (above & wanted).sum() / above.sum()
        before = recall
    assert average_precision(figure, wanted) == pytest.approx(total)
    assert average_precision(wanted.astype(float), wanted) == 1
    assert average_precision(np.zeros(30), wanted) == pytest.approx(wanted.mean())
    for order in itertools.islice(itertools.permutations(range(5)), 20):
        own, hit = np.array(order, float), np.array([True, False, False, True, False])
        assert 0 < average_precision(own, hit) <= 1
