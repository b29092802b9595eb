"""Rules that say which pairs to look at, put together with not, and, or."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from smda_jax.errors import InputError
from smda_jax.policy.curation import far_off_target, misaligned

Chosen = Bool[np.ndarray, " pair"]


@dataclass(frozen=True)
class Judged:
    """What rules look at.

    Attributes:
        raises: whether each pair is expected to raise the behaviour; None where that is not known.
        figures: of every pair, by name.
        label: of every pair.
        columns: further columns, of texts, numbers and truth values.
    """

    raises: list[bool | None]
    figures: Mapping[str, Float[np.ndarray, " pair"]]
    label: list[str | None]
    columns: Mapping[str, list[Any]]

    def figure(self, name: str) -> Float[np.ndarray, " pair"]:
        """A figure. Raises InputError where the run does not know it."""
        values = self.figures.get(name)
        if values is None or np.isnan(values).all():
            raise InputError(
                "--rule", f"the run does not know {name}", "attribute with more --keep"
            )
        return values

    def harm(self, name: str) -> Float[np.ndarray, " pair"]:
        """How far a pair's figure goes against what is expected of it; −∞ where nothing is.

        Raises:
            InputError: nothing is expected of any pair.
        """
        self.refuse_unknown_sides()
        sign = np.array([0.0 if x is None else -1.0 if x else 1.0 for x in self.raises])
        return np.where(sign == 0, -np.inf, sign * self.figure(name))

    def known(self, rule: str) -> Chosen:
        """Pairs of which a rule says something at all."""
        known = np.ones(len(self.raises), bool)
        if rule in OF_FIGURES:
            known &= ~np.isnan(self.figure(OF_FIGURES[rule]))
        if rule in OF_SIDES:
            known &= np.array([x is not None for x in self.raises])
        return known

    def refuse_unknown_sides(self) -> None:
        """Raises InputError where nothing is expected of the pairs: no side is the wrong one."""
        if not {True, False} <= set(self.raises):
            what = "nothing is known of which pairs should raise the behaviour, and which lower it"
            raise InputError("--rule", what, "attribute with --raises LABEL")


def _across(figure: str) -> Callable[[Judged, str], Chosen]:
    def rule(on: Judged, value: str) -> Chosen:
        on.refuse_unknown_sides()
        return misaligned(on.figure(figure), on.raises, _share(value) if value else 0.5)

    return rule


def _top(figure: str) -> Callable[[Judged, str], Chosen]:
    def rule(on: Judged, value: str) -> Chosen:
        harm, count = on.harm(figure), _count(value)
        chosen = np.zeros(len(harm), bool)
        chosen[np.argsort(-harm, kind="stable")[:count]] = True
        return chosen & np.isfinite(harm)

    return rule


def _off_target(on: Judged, value: str) -> Chosen:
    return far_off_target(on.figure("off_target_share"), on.label, _share(value))


def _stable(on: Judged, value: str) -> Chosen:
    return on.figure("flag_delta_y_stability") >= _share(value)


def _column(on: Judged, value: str) -> Chosen:
    name, given, wanted = value.partition("=")
    if name not in on.columns:
        known = ", ".join(sorted(on.columns))
        remedy = f"columns are {known}, and those of --columns-from"
        raise InputError("--rule", f"there is no column {name!r}", remedy)
    values = on.columns[name]
    if given:
        return np.array([_same(v, wanted) for v in values])
    return np.array([_true(v, name) for v in values])


def _true(value: Any, name: str) -> bool:
    if value is None or value == "" or value != value:
        return False
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    text = str(value).strip().lower().removesuffix(".0")
    if text not in known:
        what = f"column {name!r} holds {value!r}, which is neither true nor false"
        raise InputError("--rule", what, f"column:{name}={value}")
    return known[text]


def _same(value: Any, wanted: str) -> bool:
    """Whether a value is what a rule says: as text, or as the same number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    return value is not None and str(value) == wanted


def _equals(name: str) -> Callable[[Judged, str], Chosen]:
    def rule(on: Judged, value: str) -> Chosen:
        found = np.array([_same(v, value) for v in on.columns[name]])
        if not found.any():
            known = ", ".join(dict.fromkeys(str(v) for v in on.columns[name] if v is not None))
            remedy = f"of {known}" if known else ""
            raise InputError("--rule", f"no pair has {name} {value!r}", remedy)
        return found

    return rule


# Figures that rules look at, and rules that ask what is expected of a pair.
OF_FIGURES = {
    "mean_delta_y": "mean_delta_y",
    "quantile": "mean_delta_y",
    "top": "mean_delta_y",
    "score": "score",
    "score_quantile": "score",
    "score_top": "score",
    "off_target": "off_target_share",
    "stable": "flag_delta_y_stability",
}
OF_SIDES = ("mean_delta_y", "quantile", "top", "score", "score_quantile", "score_top")
# name -> (whether it takes a value: never, always, or maybe (None), what it chooses)
RULES: dict[str, tuple[bool | None, Callable[[Judged, str], Chosen]]] = {
    "mean_delta_y": (False, _across("mean_delta_y")),
    "score": (False, _across("score")),
    "quantile": (True, _across("mean_delta_y")),
    "score_quantile": (True, _across("score")),
    "top": (True, _top("mean_delta_y")),
    "score_top": (True, _top("score")),
    "off_target": (True, _off_target),
    "stable": (True, _stable),
    "label": (True, _equals("label")),
    "category": (True, _equals("category")),
    "planted": (False, lambda on, _: np.array([bool(v) for v in on.columns["planted"]])),
    "column": (True, _column),
}


def choose(rule: str, on: Judged) -> tuple[Chosen, list[str]]:
    """Pairs that a rule chooses, and of each why: the conditions of the rule that hold, or nothing.

    Raises:
        InputError: the rule cannot be read, or the run does not know what it looks at.
    """
    if re.search(r"(?i)(^|\s)(and|or|not)\s*$", rule):
        raise InputError("--rule", f"{rule!r} ends before its last condition")
    parts = re.split(r"(?i)\s+or\s+", rule.strip())
    chosen, reasons = np.zeros(len(on.raises), bool), [[] for _ in on.raises]
    for part in parts:
        terms = re.split(r"(?i)\s+and\s+", part.strip())
        held = np.stack([_term(term, on) for term in terms]).all(axis=0)
        chosen |= held
        for row in np.flatnonzero(held):
            reasons[row].append(" and ".join(term.strip() for term in terms))
    return chosen, ["; ".join(own) for own in reasons]


def _term(text: str, on: Judged) -> Chosen:
    plain = text.strip()
    negated = plain.startswith("not ")
    name, given, value = plain.removeprefix("not ").strip().partition(":")
    if name not in RULES:
        remedy = f"one of {', '.join(RULES)}, joined by not, and, or (no parentheses)"
        raise InputError("--rule", f"{name!r} is not known", remedy)
    takes, rule = RULES[name]
    if takes is not None and takes != bool(given and value):
        what = f"{name} takes {'a value' if takes else 'no value'}"
        raise InputError("--rule", what, f"{name}:VALUE" if takes else name)
    found = rule(on, value)
    return ~found & on.known(name) if negated else found


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 <= value <= 1:
        raise InputError("--rule", f"{text!r} is not a share", "from 0 to 1")
    return value


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]+", text) or not int(text):
        raise InputError("--rule", f"{text!r} is no number of pairs", "such as top:20")
    return int(text)


def matched_controls(
    chosen: Chosen, label: list[str | None], count: int, seed: int
) -> list[Chosen]:
    """Random choices of as many pairs of every label, from all pairs of it, each with a seed of its
    own."""
    controls = []
    for number in range(count):
        rng, own = np.random.default_rng((seed, number)), np.zeros(len(chosen), bool)
        for name in dict.fromkeys(label):
            rows = np.flatnonzero([x == name for x in label])
            own[rng.choice(rows, int(chosen[rows].sum()), replace=False)] = True
        controls.append(own)
    return controls
