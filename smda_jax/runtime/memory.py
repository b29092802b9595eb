"""How much memory programs may take, and work that is done in smaller chunks where it is short."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np


class TooLargeError(Exception):
    """A program needs more memory than there is; a smaller chunk may fit."""


def memory_limit() -> int:
    """Bytes that programs may take on one device.

    Of an accelerator nearly all that is free; of a host half of what it (or its container) has.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] * 0.9) - stats.get("bytes_in_use", 0)
    return _host_memory() // 2 // max(1, jax.local_device_count())


@cache
def _host_memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(file).read_text().strip() if Path(file).exists() else "max"
        total = min(total, int(text)) if text.isdigit() else total
    return total


@runtime_checkable
class SomeRows(Protocol):
    """A chunk of work: some rows of a data set."""

    @property
    def rows(self) -> Any:
        """Which rows."""
        ...

    def of_rows(self, rows: Any) -> Any:
        """The same chunk of other rows."""
        ...


Chunk = TypeVar("Chunk", bound=SomeRows)
Result = TypeVar("Result")


def for_each(
    lengths: Sequence[int],
    most: int,
    split: Callable[[list[int], int], Iterable[Chunk]],
    visit: Callable[[Chunk], None],
) -> None:
    """Visits chunks of items, as `split` makes them of lengths and the most items of a chunk.

    Where one does not fit into memory, what is left is done in chunks of half the size.

    Raises:
        TooLargeError: not even one item at a time fits.
    """
    left = np.arange(len(lengths))
    while len(left):
        try:
            for chunk in split([lengths[i] for i in left.tolist()], most):
                visit(chunk.of_rows(left[chunk.rows]))
                left[chunk.rows] = -1
        except TooLargeError:
            if most == 1:
                raise
            most = -(-most // 2)
        left = left[left >= 0]


def halving(call: Callable[[int], Result], size: int) -> Result:
    """`call(size)`, or with half the size until it fits into memory.

    Raises:
        TooLargeError: not even size 1 fits.
    """
    while True:
        try:
            return call(size)
        except TooLargeError:
            if size == 1:
                raise
        size = -(-size // 2)  # out of the handler, which would hold on to arrays of what failed
