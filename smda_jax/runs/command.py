"""What all commands have in common. Imports nothing heavy."""

import re
from dataclasses import asdict
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from smda_jax.errors import InputError


class Command:
    """What all commands have in common: what the command line checks is checked from Python too.

    Attributes:
        named_files: fields that may name a file or folder here.
        named_data: fields that name data files, or are None.
    """

    named_files: ClassVar[tuple[str, ...]] = ()
    named_data: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, str) and Path in (hint, *get_args(hint)):
                object.__setattr__(self, name, Path(value))

    def resolved(self) -> dict[str, Any]:
        """As written to the records of a run; what names a file or folder here is made absolute, so
        that it can be replayed anywhere."""
        from smda_jax.data.sources import absolute

        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return list(value)
            return str(value) if isinstance(value, Path) else value

        def resolve(name: str, value: Any) -> Any:
            if name in self.named_data and value is not None:
                several = isinstance(value, tuple)
                found = tuple(absolute(one) for one in (value if several else (value,)))
                return found if several else found[0]
            path = Path(str(value)).expanduser()
            named = name in self.named_files and value is not None and path.exists()
            return path.resolve() if named else value

        values = asdict(self).items()  # type: ignore[call-overload]
        return {k: plain(resolve(k, v)) for k, v in values if k != "config"}

    def check(self) -> None:
        """Raises InputError for a choice that there is not, or one text where several are meant."""
        for name, hint in get_type_hints(type(self)).items():
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            choices = _choices(hint)
            if choices and value not in choices:
                known = ", ".join(str(choice) for choice in choices if choice is not None)
                raise InputError(flag, f"{value!r} is not known", f"one of {known}")
            if name == "seed" and value < 0:
                raise InputError(flag, f"{value} is below 0")
            if get_origin(hint) is tuple and isinstance(value, str):
                raise InputError(flag, f"{value!r} is one text", f"a tuple: ({value!r},)")


def _choices(hint: Any) -> tuple[Any, ...]:
    """What a field may be, of one that has choices (or none, None)."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    found = [choice for part in parts for choice in _choices(part)]
    return (*found, None) if found and type(None) in parts else tuple(found)


def part_of(text: str) -> tuple[int, int]:
    """(k − 1, n) of `k/n`: of work that is shared out, every n-th piece from there on is one's own.

    Raises:
        InputError: it is no part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError("--part", f"{text!r} is no share", "k/n with k from 1 to n")
    return int(found[1]) - 1, int(found[2])
