"""What all commands have in common. Imports nothing heavy."""

from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from smda_jax.errors import InputError


class Command:
    """What all commands have in common: what the command line checks is checked from Python too."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, str) and Path in (hint, *get_args(hint)):
                object.__setattr__(self, name, Path(value))

    def check(self) -> None:
        """Raises InputError for a choice that there is not, or one text where several are meant."""
        for name, hint in get_type_hints(type(self)).items():
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if get_origin(hint) is Literal and value not in get_args(hint):
                known = ", ".join(map(str, get_args(hint)))
                raise InputError(flag, f"{value!r} is not known", f"one of {known}")
            if get_origin(hint) is tuple and isinstance(value, str):
                raise InputError(flag, f"{value!r} is one text", f"a tuple: ({value!r},)")
