"""What all commands have in common. Imports nothing heavy."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from smda_jax.errors import InputError


class Command:
    """What all commands have in common: what the command line checks is checked from Python too.

    Attributes:
        paths: fields that may name a file or folder here.
        data: fields that name data files, or are None.
    """

    paths: ClassVar[tuple[str, ...]] = ()
    data: ClassVar[tuple[str, ...]] = ()

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
            if name in self.data and value is not None:
                several = isinstance(value, tuple)
                found = tuple(absolute(one) for one in (value if several else (value,)))
                return found if several else found[0]
            path = Path(str(value)).expanduser()
            named = name in self.paths and value is not None and path.exists()
            return path.resolve() if named else value

        values = asdict(self).items()  # type: ignore[call-overload]
        return {k: plain(resolve(k, v)) for k, v in values if k != "config"}

    def check(self) -> None:
        """Raises InputError for a choice that there is not, or one text where several are meant."""
        for name, hint in get_type_hints(type(self)).items():
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if get_origin(hint) is Literal and value not in get_args(hint):
                known = ", ".join(map(str, get_args(hint)))
                raise InputError(flag, f"{value!r} is not known", f"one of {known}")
            if get_origin(hint) is tuple and isinstance(value, str):
                raise InputError(flag, f"{value!r} is one text", f"a tuple: ({value!r},)")
