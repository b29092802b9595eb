"""What a run found, in sentences: told once, for the page, the terminal and the README."""

from typing import Any

import numpy as np

from smda_jax.policy.bootstrap import LEVEL
from smda_jax.report.data import Columns, Run, rows_of, totals

STEADY = LEVEL  # share of resamples in which a figure that is called steady keeps its sign
TURNED = -0.3  # rank correlation with mean ΔY below which the score runs against the behaviour
FEW_PAIRS, FEW_PROMPTS = 5, 20


def number(value: float | None, digits: int = 3) -> str:
    """A figure with so many significant digits; – where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    small = not 1e-2 <= abs(value) < 1e4
    return f"{value:.{digits - 1}e}" if small else f"{value:#.{digits}g}".rstrip(".")


def signed(value: float | None, digits: int = 3) -> str:
    """A figure with its sign."""
    plus = "+" if value is not None and value > 0 else ""
    return plus + number(value, digits)


def percent(share: float | None) -> str:
    """A share in per cents."""
    return "–" if share is None else f"{round(100 * share)} %"


def several(count: int, what: str) -> str:
    """`1 pair`, `2 pairs`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


NAMES = {
    "mean_delta_y": "mean ΔY",
    "r2_delta_y": "ΔY",
    "r2_delta_x": "ΔX",
    "r2_delta_w": "ΔW",
    "r2_score": "score",
}


def words(name: str) -> str:
    """A column's name in words."""
    return NAMES.get(name, name.replace("_", " "))


def findings(run: Run) -> list[str]:
    """The sentences, the most important first."""
    parts = (_fit, _coefficients, _gap, _over_refusal, _small, _off_target, _flags, _score_flags)
    said = [sentence for part in parts for sentence in part(run)]
    return [*said, *_planted(run), *_first_order(run)]


def _summary(run: Run) -> dict[str, Any]:
    return run.record["summary"]


def _test(run: Run) -> tuple[dict[str, Any], bool]:
    """The fit of the policy of all prompts, and whether it is of prompts that were held out."""
    fit = _summary(run)["fits"]["all"]
    return (fit["test"], True) if fit["test"] else (fit["train"], False)


def _fit(run: Run) -> list[str]:
    test, held_out = _test(run)
    where = "held-out prompts" if held_out else "the prompts it was fitted to"
    majority = number(test["majority"], 2)
    return [
        f"A policy of {_summary(run)['features']} features predicts the behaviour with "
        f"R² {number(test['r2'], 2)} on {test['prompts']} {where} (0 is the mean), and refusals "
        f"with accuracy {number(test['accuracy'], 2)} (always the commoner answer: {majority})."
    ]


def _coefficients(run: Run) -> list[str]:
    stability = run.features().get("sign_stability")
    if not stability:
        return []
    steady = sum(s >= STEADY for s in stability)
    return [
        f"{steady} of {len(stability)} coefficients keep their sign in at least {STEADY:.0%} of "
        "the resamples.".replace("%", " %")
    ]


def _sure_gaps(run: Run) -> list[dict[str, Any]]:
    return [g for g in rows_of(run.tables["gaps.parquet"]) if g["gap_low"] is not None]


def strongest_gap(run: Run) -> dict[str, Any] | None:
    """The category that the behaviour passes over most, of harmful prompts if there are any.

    Only categories with an interval count; None where no gap is below zero.
    """
    below = [g for g in _sure_gaps(run) if g["gap"] < 0]
    harmful = [g for g in below if g["label"] == "harmful"]
    return min(harmful or below, key=lambda g: g["gap"], default=None)


def _too_few(run: Run, over: float) -> list[str]:
    """Larger gaps among harmful prompts, of categories with too few prompts for an interval."""
    rows = rows_of(run.tables["gaps.parquet"])
    few = [g for g in rows if g["gap"] is not None and g["gap_low"] is None]
    few = [g for g in few if g["label"] == "harmful" and g["gap"] < over]
    if not few:
        return []
    worst = min(few, key=lambda g: g["gap"])
    return [
        f"{worst['category']} is {number(worst['gap'])} {run.unit} from the other harmful prompts, "
        f"on {several(worst['prompts'], 'prompt')}: too few for an interval."
    ]


def _gap(run: Run) -> list[str]:
    gap = strongest_gap(run)
    if gap is None:
        few = "No category has ten prompts, and ten others of its label beside it"
        if not run.tables["gaps.parquet"]["gap"]:
            return []
        none = "No category of ten prompts or more has a lower mean Y than the others of its label."
        said = none if _sure_gaps(run) else f"{few}: nothing is said of gaps."
        return [said, *_too_few(run, 0.0)]
    names = _feature_names(run.features())
    own = (
        r for r in rows_of(run.tables["gap_features.parquet"]) if r["category"] == gap["category"]
    )
    carry = sorted(own, key=lambda r: r["carried"])[:2]
    carried = " and ".join(f"{names(r['feature_id'])} ({signed(r['carried'])})" for r in carry)
    interval = f"{number(gap['gap_low'])} … {number(gap['gap_high'])}"
    return [
        f"The strongest gap is {gap['category']}: mean Y {number(gap['y'])} {run.unit}, "
        f"{number(gap['gap'])} from the other {gap['label'] or ''} prompts (95 %: {interval}); "
        f"{percent(gap['refused'])} are refused. The policy predicts {number(gap['prediction'])} "
        f"there; {carried} carry most of its part of the gap."
        + (" The interval includes zero." if gap["gap_high"] >= 0 else ""),
        *_too_few(run, gap["gap"]),
    ]


def _feature_names(features: Columns) -> Any:
    ids, labels = features.get("feature_id", []), features.get("label", [])
    named = dict(zip(ids, labels, strict=True))
    return lambda i: f"{i} {named[i]}" if named.get(i) else str(i)


def _over_refusal(run: Run) -> list[str]:
    sure = _sure_gaps(run)
    if not any(g["label"] == "harmful" for g in sure):
        return []
    harmless = sorted((g for g in sure if g["label"] == "harmless"), key=lambda g: -g["gap"])
    if not harmless or not harmless[0]["refused"] > 0:
        return []
    over = harmless[0]
    return [
        f"Among harmless prompts, {over['category']} is refused most for its label: "
        f"{percent(over['refused'])} (gap {signed(over['gap'])} {run.unit})."
    ]


def _small(run: Run) -> list[str]:
    test, held_out = _test(run)
    if test["prompts"] >= FEW_PROMPTS:
        return []
    what = "were held out" if held_out else "were read"
    prompts = several(test["prompts"], "prompt")
    return [f"Only {prompts} {what}: figures of the fit say little."]


def _off_target(run: Run) -> list[str]:
    if not run.contribution:
        return []
    count, pairs = totals(run)["unintended"], several(run.record["pairs"], "pair")
    return [
        f"{count} of {pairs} act mostly off target: their dominant feature is not active on their "
        "own prompt."
    ]


def _holds(run: Run, count: int) -> str:
    """How many of the flags are steady, where that is known."""
    steady = f", {count} of them in at least 95 % of the resamples"
    return steady if totals(run)["sure"] else ""


def _flags(run: Run) -> list[str]:
    t = totals(run)
    if not t["delta_y"]:
        known = "is not known: the run kept scores only."
        return [f"Which pairs move the behaviour as the other class does {known}"]
    few = any(len(scores) < FEW_PAIRS for scores in t["scores"].values())
    little = "A class has fewer than five pairs: flags against its median say little."
    planted = ""
    if t["planted"]:
        planted = f"; {t['planted_flagged']} of the {t['planted']} planted pairs are among them"
    return [
        f"{several(t['flagged_delta_y'], 'pair')} move the behaviour as the other class does "
        f"(mean ΔY on the far side of its median){_holds(run, t['stable_flagged_delta_y'])}"
        f"{planted}.{' ' + little if few else ''}"
    ]


def _score_flags(run: Run) -> list[str]:
    t = totals(run)
    against = next(
        (
            row["spearman"]
            for row in rows_of(run.tables["agreement.parquet"])
            if (row["class"], row["figure"], row["other"]) == ("all", "score", "mean_delta_y")
        ),
        None,
    )
    why = "Y is below zero and the policy has no intercept"
    if against is not None and against < TURNED:
        return [
            "The paper's flags, by score, cannot be read as misaligned here: the score runs "
            f"against mean ΔY (ρ {number(against, 2)}), since {why}, so that steps which make the "
            "behaviour likelier move the policy against itself. By score, "
            f"{t['flagged']} would be flagged."
        ]
    known = against is not None
    doubt = (
        f" Whether they are misaligned cannot be told here: {why}, so that the score may run "
        "against the behaviour, and mean ΔY, which would show it, was not kept."
    )
    pairs, holds = several(t["flagged"], "pair"), _holds(run, t["stable_flagged"])
    verb = "is" if t["flagged"] == 1 else "are"
    return [f"By score, as in the paper, {pairs} {verb} flagged{holds}.{'' if known else doubt}"]


def _planted(run: Run) -> list[str]:
    said = []
    for name, found in (_summary(run).get("planted_pairs_auc") or {}).items():
        figures = ", ".join(f"{words(k)} {number(v, 2)}" for k, v in found.items())
        how = "oriented as the paper flags; near 0 separates as well as near 1, the other way round"
        said.append(f"Planted pairs among {name}: AUC {figures} ({how}).")
    return said


def _first_order(run: Run) -> list[str]:
    table = run.tables.get("verify.parquet", {})
    rows = [row for row in rows_of(table) if row["figure"] == "score"]
    if rows:
        fails = [row["learning_rate"] for row in rows if not row["holds"]]
        rates = [row["learning_rate"] for row in rows if row["holds"]]
        good = [rate for rate in rates if not any(bad < rate for bad in fails)]
        if not good:
            never = "at any learning rate that was verified."
            return [f"First order does not hold for the score {never}"]
        steps = f"({rows[0]['pairs']} true steps)"
        return [f"First order holds for the score up to η = {number(max(good))} {steps}."]
    checked = _summary(run).get("first_order") or {}
    figures = [(k, v) for k, v in checked.items() if k != "pairs"]
    if figures:
        r2 = ", ".join(f"{number(v, 6)} ({words(k)})" for k, v in figures)
        return [f"First order against {checked['pairs']} true steps: R² {r2}."]
    if run.contribution:
        return ["Whether first order holds was not checked: smda-jax verify RUN does."]
    return ["Whether first order holds was not checked, and cannot be of scores alone."]
