"""The grid of a sweep: axes, their values, and the product of them."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from smda_jax.errors import InputError
from smda_jax.runs.config import Attribute

# Answered from what a run kept.
FREE = (
    "alpha",
    "intercept",
    "scaling",
    "features",
    "gate",
    "threshold",
    "subset",
    "pairs",
    "learning_rate",
    "bootstrap",
)
# Need the run again with another option of `attribute`.
PASS = (
    "model",
    "sae",
    "layer",
    "encoder",
    "targets",
    "target_ids",
    "loss",
    "beta",
    "loss_scope",
    "max_length",
    "parameters",
    "update",
    "damping",
    "fisher",
    "dtype",
)


@dataclass(frozen=True)
class Grid:
    """Values of every axis named, in the order of the file."""

    axes: dict[str, list[Any]]

    @property
    def size(self) -> int:
        """How many cells."""
        return int(np.prod([len(values) for values in self.axes.values()], dtype=np.int64))

    @property
    def needs_passes(self) -> bool:
        """Whether some axis may ask for another pass."""
        return any(name in PASS for name in self.axes)

    def passes(self) -> Iterator[dict[str, Any]]:
        """The options of every pass that the grid needs; the run's own is `{}`."""
        own = {name: values for name, values in self.axes.items() if name in PASS}
        for values in itertools.product(*own.values()):
            yield dict(zip(own, values, strict=True))

    def along(self, names: tuple[str, ...], defaults: dict[str, Any]) -> list[dict[str, Any]]:
        """The product of some axes; one that the grid does not name stands at its default."""
        values = [self.axes.get(name, [defaults[name]]) for name in names]
        return [dict(zip(names, one, strict=True)) for one in itertools.product(*values)]


def read_grid(source: Path | dict[str, Any]) -> Grid:
    """A grid from a YAML file, or from what such a file holds.

    An axis is a value, a list, or `{linspace: [low, high, n]}` or `{logspace: [low, high, n]}`
    (exponents of ten); `bootstrap: 100` draws so many resamples.

    Raises:
        InputError: unreadable, an unknown axis, or one without values.
    """
    where = source if isinstance(source, Path) else "grid"
    try:
        raw = (
            yaml.safe_load(source.read_text(encoding="utf-8"))
            if isinstance(source, Path)
            else source
        )
    except (OSError, yaml.YAMLError) as error:
        first = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(
            where, f"cannot be read: {first}", "a YAML file: axis: [values]"
        ) from error
    if not isinstance(raw, dict) or not raw:
        raise InputError(where, "names no axis", "e.g. alpha: [1, 5, 25]")
    axes = {}
    for name, value in raw.items():
        if name not in FREE + PASS:
            raise InputError(where, f"unknown axis {name!r}", f"one of {', '.join(FREE + PASS)}")
        axes[name] = _values(name, value, where)
    return Grid(axes)


def _values(name: str, value: Any, where: object) -> list[Any]:
    if isinstance(value, dict):
        kind, bounds = next(iter(value.items()), ("", None))
        if (
            kind not in ("linspace", "logspace")
            or len(value) != 1
            or not isinstance(bounds, list)
            or len(bounds) != 3
        ):
            raise InputError(
                where, f"{name}: {value!r} is no axis", "a list, or {logspace: [low, high, n]}"
            )
        low, high, n = bounds
        found = getattr(np, kind)(float(low), float(high), int(n)).tolist()
    elif name == "bootstrap" and isinstance(value, int) and value < 1:
        raise InputError(where, f"bootstrap: {value} resamples are none", "1 or more")
    elif name == "bootstrap":
        found = list(range(int(value))) if isinstance(value, int) else value
    else:
        # Token ids and feature ids are lists themselves: such an axis is a list of them.
        found = value if isinstance(value, list) else [value]
    if not isinstance(found, list) or not found:
        raise InputError(where, f"{name} has no values")
    kinds = {"alpha": float, "threshold": float, "learning_rate": float, "bootstrap": int}
    try:
        found = [kinds[name](v) for v in found] if name in kinds else found
    except (TypeError, ValueError):
        raise InputError(where, f"{name}: {found!r} are not numbers") from None
    allowed = {"intercept": (True, False), "scaling": ("none", "std"), "gate": ("on", "off")}.get(
        name
    )
    # YAML reads a bare on and off as booleans.
    found = [("on" if v else "off") if name == "gate" and isinstance(v, bool) else v for v in found]
    for v in found:
        if allowed is not None and v not in allowed:
            raise InputError(
                where, f"{name}: {v!r} is not known", f"one of {', '.join(map(str, allowed))}"
            )
        if name in ("alpha", "learning_rate", "threshold") and not float(v) >= 0:
            raise InputError(where, f"{name}: {v:g} is below 0")
    if len({json.dumps(v) for v in found}) < len(found):
        raise InputError(where, f"{name} gives a value twice")
    return found


def option(name: str, value: Any) -> Any:
    """A value of a pass axis as `attribute` takes it: tuples where its field is one."""
    types = {f.name: f.type for f in fields(Attribute)}
    if "tuple" in str(types[name]):
        return tuple(value) if isinstance(value, list) else (value,)
    return value


def digest_of(*parts: Any) -> str:
    """A short name for what a part of a sweep depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
