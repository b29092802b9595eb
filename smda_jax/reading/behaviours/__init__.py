"""Behaviours: one file for each, and a row in `BEHAVIOURS` below.

Importing this imports nothing heavy, so that a command line can check itself at once.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from smda_jax.errors import InputError


@dataclass(frozen=True)
class Options:
    """What a user may say of a behaviour; each takes of it what it needs.

    Attributes:
        targets: texts.
        target_ids: the same as token ids; they replace the texts.
        against: texts that the targets are compared with.
        against_ids: the same as token ids.
        column: of the prompts' data.
        less: another one, whose value is taken off.
        per_token: whether a log-probability is a mean over tokens.
        direction: file of a direction in a stream.
        direction_layer: the layer of the stream; None for the SAE's.
        direction_site: the stream; empty for the SAE's.
        direction_token: the token that it is read at.
        shows_above: above which Y a prompt shows the behaviour; None for the behaviour's own.
    """

    targets: tuple[str, ...] = ()
    target_ids: tuple[tuple[int, ...], ...] = ()
    against: tuple[str, ...] = ()
    against_ids: tuple[tuple[int, ...], ...] = ()
    column: str = ""
    less: str = ""
    per_token: bool = False
    direction: str = ""
    direction_layer: int | None = None
    direction_site: str = ""
    direction_token: Literal["turn", "last"] = "turn"
    shows_above: float | None = None


@dataclass(frozen=True)
class Asking:
    """What a behaviour is made from.

    Attributes:
        model: that is read.
        prompts: the evaluation prompts.
        site: that the SAE reads.
        options: of the user.
    """

    model: Any
    prompts: Any
    site: Any
    options: Options


@dataclass(frozen=True)
class Offer:
    """A behaviour by the name that `--behaviour` takes.

    Attributes:
        module: of this package, with a function `make(asking)`.
        takes: the options that say something to it.
        columns: those of them that name columns of the prompts' data, and what they are called
            where nothing is said.
    """

    module: str
    takes: tuple[str, ...]
    columns: dict[str, str]


SEQUENCES = ("targets", "target_ids")
DIRECTION = ("direction", "direction_layer", "direction_site", "direction_token")
BEHAVIOURS = {
    "begins": Offer("begins", SEQUENCES, {}),
    "contrast": Offer("contrast", (*SEQUENCES, "against", "against_ids"), {}),
    "completion": Offer(
        "completion", ("column", "less", "per_token"), {"column": "completion", "less": ""}
    ),
    "probe": Offer("probe", DIRECTION, {}),
    "column": Offer("column", ("column",), {"column": "y"}),
}


def check(name: str, options: Options) -> None:
    """Raises InputError if there is no such behaviour, or an option says nothing to it."""
    if ":" in name:
        takes: tuple[str, ...] = ()
    elif name in BEHAVIOURS:
        takes = BEHAVIOURS[name].takes
    else:
        known = ", ".join([*BEHAVIOURS, "module:name"])
        raise InputError("--behaviour", f"{name} is not known", f"one of {known}")
    for option, value in vars(options).items():
        told = value != getattr(Options, option, ())
        if told and option != "shows_above" and option not in takes:
            who = [k for k, offer in BEHAVIOURS.items() if option in offer.takes]
            flag = f"--{option.replace('_', '-')}"
            raise InputError(flag, f"says nothing to {name}", f"--behaviour {' or '.join(who)}")


def columns_of(name: str, options: Options) -> tuple[str, ...]:
    """Columns of the prompts' data that a behaviour reads."""
    offer = BEHAVIOURS.get(name)
    found = {} if offer is None else offer.columns
    return tuple(c for k, usual in found.items() if (c := getattr(options, k) or usual))


def make_behaviour(name: str, asking: Asking) -> Any:
    """The behaviour of a name; see `contract.Behaviour`.

    Raises:
        InputError: there is none, or the options do not suit it.
    """
    check(name, asking.options)
    if name in BEHAVIOURS:
        return import_module(f"{__name__}.{BEHAVIOURS[name].module}").make(asking)
    from smda_jax.reading.behaviours.contract import Behaviour

    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # modules in the working folder, as `python -m` finds them
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError("--behaviour", f"{name} cannot be imported: {error}") from error
    if not isinstance(found, Behaviour):
        what = f"{name} is a {type(found).__name__}, not a behaviour"
        raise InputError("--behaviour", what, "smda_jax.Function(...), see docs/behaviours.md")
    return found
