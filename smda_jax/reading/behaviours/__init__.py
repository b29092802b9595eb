"""Behaviours: one file for each, and a row in `BEHAVIOURS` below.

Importing this imports nothing heavy, so that a command line can check itself at once.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from smda_jax.errors import InputError


@dataclass(frozen=True)
class Options:
    """What a user may say of a behaviour; each takes of it what it needs.

    Attributes:
        targets: texts.
        target_ids: the same as token ids; they replace the texts.
    """

    targets: tuple[str, ...] = ()
    target_ids: tuple[tuple[int, ...], ...] = ()


# name that `--behaviour` takes -> module here, with a function `make(model, options)`
BEHAVIOURS = {"begins": "begins"}


def check_name(name: str) -> None:
    """Raises InputError if there is no such behaviour."""
    if name not in BEHAVIOURS:
        known = ", ".join(BEHAVIOURS)
        raise InputError("--behaviour", f"{name} is not known", f"one of {known}")


def make_behaviour(name: str, model: Any, options: Options) -> Any:
    """The behaviour of a name; see `contract.Behaviour`.

    Raises:
        InputError: there is none, or the options do not suit it.
    """
    check_name(name)
    return import_module(f"{__name__}.{BEHAVIOURS[name]}").make(model, options)
