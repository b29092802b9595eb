"""The configuration that a run recorded, to be read back or replayed."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from smda_jax.errors import InputError
from smda_jax.runs.config import Attribute


def from_run(path: Path) -> dict[str, Any]:
    """Fields of `Attribute` recorded in a run.json.

    Raises:
        InputError: unreadable, or of another version of the command.
    """
    path = path / "run.json" if path.is_dir() else path
    try:
        raw = json.loads(path.read_text())["config"]
        known = {f.name for f in fields(Attribute)}
        if set(raw) - known:
            raise InputError(
                path,
                f"unknown field {sorted(set(raw) - known)[0]!r}",
                "was it written by another version?",
            )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = (
            "no such file"
            if isinstance(error, FileNotFoundError)
            else f"is not the run.json of a run: {error!r}"
        )
        raise InputError(path, what, "give RUN/run.json") from error
    for name in ("out", "cache"):
        raw[name] = None if raw.get(name) is None else Path(raw[name])
    return {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
