"""Files that appear whole or not at all, and one line for a disk that refuses them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smda_jax.errors import InputError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a path beside `target` to write to; on leaving, the file is renamed to `target`.

    The name holds the process id, so that two processes that write the same file do not meet.

    Raises:
        InputError: the file cannot be written.
    """
    part = target.with_name(f"{target.name}.part{os.getpid()}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Writes a text file at once.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(target) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns a full disk and a forbidden folder into one line.

    Raises:
        InputError: the disk is full, or `place` cannot be written.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = str(error)
        full = getattr(error, "errno", None) == errno.ENOSPC
        if full or "No space left" in text or "RESOURCE_EXHAUSTED" in text:
            remedy = "free some space and run the same command again: it continues"
            raise InputError(place, "the disk is full", remedy) from error
        if isinstance(error, OSError):
            reason = error.strerror or text
            remedy = "check the folder's permissions"
            raise InputError(place, f"cannot be written: {reason}", remedy) from error
        raise
