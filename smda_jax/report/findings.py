"""What a run found, in sentences: told once, for the page, the terminal and the README."""

from typing import Any

import numpy as np

from smda_jax.policy.bootstrap import LEVEL
from smda_jax.report.data import Columns, Run, rows_of, totals
from smda_jax.report.decisions import decided, step

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
    parts = (
        step,
        decided,
        _behaviour,
        _fit,
        _coefficients,
        _gap,
        _most,
        _small,
        _off_target,
        _flags,
    )
    said = [sentence for part in parts for sentence in part(run)]
    return [*said, *_score_flags(run), *_planted(run), *_first_order(run)]


def _summary(run: Run) -> dict[str, Any]:
    return run.record["summary"]


def _test(run: Run) -> tuple[dict[str, Any], bool]:
    """The fit of the policy of all prompts, and whether it is of prompts that were held out."""
    fit = _summary(run)["fits"]["all"]
    return (fit["test"], True) if fit["test"] else (fit["train"], False)


def _behaviour(run: Run) -> list[str]:
    """What Y is, where it is not the paper's."""
    if not run.moves:
        return [
            f"Y is {run.unit.removeprefix('of ')}, as the data give it: a step does not move it, "
            "and every shift goes through feature activations alone."
        ]
    said = run.record["config"]
    own = said.get("targets") or said.get("target_ids")
    if run.record["behaviour"]["name"] == "begins" and not own:
        return []
    return [f"Higher Y ({run.unit}): {run.record['behaviour']['raised']}."]


def _fit(run: Run) -> list[str]:
    test, held_out = _test(run)
    where = "held-out prompts" if held_out else "the prompts it was fitted to"
    majority = number(test["majority"], 2)
    return [
        f"A policy of {_summary(run)['features']} features predicts the behaviour with "
        f"R² {number(test['r2'], 2)} on {test['prompts']} {where} (0 is the mean), and which "
        f"of them show it with accuracy {number(test['accuracy'], 2)} (always the commoner answer: "
        f"{majority})."
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
    """The category that the behaviour passes over most, of the label that shows it most.

    If that has none, of any label. Only categories with an interval count; None where no gap is
    below zero.
    """
    below = [g for g in _sure_gaps(run) if g["gap"] < 0]
    leading = [g for g in below if g["label"] == run.leading_label]
    return min(leading or below, key=lambda g: g["gap"], default=None)


def _too_few(run: Run, over: float) -> list[str]:
    """Larger gaps among the leading label's prompts, of categories with too few for an interval."""
    rows = rows_of(run.tables["gaps.parquet"])
    few = [g for g in rows if g["gap"] is not None and g["gap_low"] is None]
    few = [g for g in few if g["label"] == run.leading_label and g["gap"] < over]
    if not few:
        return []
    worst = min(few, key=lambda g: g["gap"])
    return [
        f"{worst['category']} is {number(worst['gap'])} {run.unit} from the other "
        f"{worst['label'] or ''} prompts, "
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
        f"The strongest gap below the others of a label is {gap['category']}: mean Y "
        f"{number(gap['y'])} {run.unit}, {number(gap['gap'])} from the other {gap['label'] or ''} "
        f"prompts (95 %: {interval}); "
        f"{percent(gap['shows'])} show the behaviour. The policy predicts "
        f"{number(gap['prediction'])} there; {carried} carry most of its part of the gap."
        + (" The interval includes zero." if gap["gap_high"] >= 0 else ""),
        *_too_few(run, gap["gap"]),
    ]


def _feature_names(features: Columns) -> Any:
    ids, labels = features.get("feature_id", []), features.get("label", [])
    named = dict(zip(ids, labels, strict=True))
    return lambda i: f"{i} {named[i]}" if named.get(i) else str(i)


def _most(run: Run) -> list[str]:
    """Of every other label, the category that shows the behaviour most for it."""
    sure, leading = _sure_gaps(run), run.leading_label
    if not any(g["label"] == leading for g in sure):
        return []
    said = []
    refusing = run.record["behaviour"]["name"] == "begins"  # whose gaps below are what is asked
    for label in dict.fromkeys(g["label"] for g in sure):
        if refusing and label == leading:
            continue
        most = max((g for g in sure if g["label"] == label), key=lambda g: g["gap"])
        if most["shows"] > 0:
            said.append(
                f"Among {label or 'unlabelled'} prompts, {most['category']} shows the behaviour "
                f"most for its label: {percent(most['shows'])} "
                f"(gap {signed(most['gap'])} {run.unit})."
            )
    return said


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


def _not_said(run: Run) -> str:
    """Why no pair is flagged, where none can be."""
    expected = {x for x in run.tables["pairs.parquet"].get("raises", []) if x is not None}
    if expected:
        what = "raise" if expected == {True} else "lower"
        return f"No pair is flagged: all are expected to {what} Y, and none are left beside them."
    return (
        "No pair is flagged, since it is not said which are expected to raise Y: --raises LABEL, "
        "or a column raises."
    )


def _one_sided(run: Run) -> bool:
    raises = run.tables["pairs.parquet"].get("raises")
    return raises is not None and not {True, False} <= set(raises)


def _expected(run: Run) -> str:
    """Which pairs are expected to raise the behaviour, and where that is known from."""
    known = run.record.get("polarity") or {"raises": ["pairs about harmful prompts"], "source": ""}
    source = f", by {known['source']}" if known["source"] else ""
    return f"{' and '.join(known['raises']) or 'some pairs'} to raise it{source}"


def _flags(run: Run) -> list[str]:
    t = totals(run)
    if not t["mean_delta_y"]:
        if not run.moves:
            return []
        known = "is not known: the run kept scores only."
        return [f"Which pairs lie on the far side of what is expected of them {known}"]
    if not t["delta_y"]:
        return [_not_said(run)]
    few = any(len(scores) < FEW_PAIRS for scores in t["scores"].values())
    little = "A class has fewer than five pairs: flags against its median say little."
    planted = ""
    if t["planted"]:
        planted = f"; {t['planted_flagged']} of the {t['planted']} planted pairs are among them"
    return [
        f"{several(t['flagged_delta_y'], 'pair')} lie on the far side of what is expected of "
        f"them ({_expected(run)}): mean ΔY beyond the median of the others"
        f"{_holds(run, t['stable_flagged_delta_y'])}{planted}.{' ' + little if few else ''}"
    ]


def _score_flags(run: Run) -> list[str]:
    t = totals(run)
    if _one_sided(run):
        return [] if t["mean_delta_y"] else [_not_said(run)]
    against = next(
        (
            row["spearman"]
            for row in rows_of(run.tables["agreement.parquet"])
            if (row["class"], row["figure"], row["other"]) == ("all", "score", "mean_delta_y")
        ),
        None,
    )
    below = max(run.tables["prompts.parquet"]["y"]) < 0
    since = ", since Y is below zero and the policy has no intercept" if below else ""
    if against is not None and against < TURNED:
        return [
            "The paper's flags, by score, cannot be read as misaligned here: the score runs "
            f"against mean ΔY (ρ {number(against, 2)}){since}, so that steps which "
            "raise Y move the policy against itself. By score, "
            f"{t['flagged']} would be flagged."
        ]
    known = against is not None
    doubt = (
        " Whether they are misaligned cannot be told here: the score may run against the behaviour"
        f"{since}, and mean ΔY, which would show it, "
        f"{'was not kept' if run.moves else 'there is none'}."
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
