"""Signs of life between the processes of one run, through the folder that all of them see.

A process that dies leaves the others waiting in a collective or a barrier; how long, and what is
said in the end, depends on the runtime and the network. So each touches a file of its own every few
seconds, and ends when another's stands still. (Where the first process dies, which JAX's
coordination service runs in, JAX itself ends the others at once and says so at length.)
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from smda_jax.runtime import processes

EVERY, PATIENCE = 2.0, 30.0  # seconds between signs, and without one


@contextmanager
def watched(folder: Path, patience: float | int = PATIENCE) -> Iterator[None]:
    """Within it, this process gives signs of life, and ends with one line and status 2 once another
    gives none.

    A process that leaves in good order takes its file away, and is waited for no longer.
    """
    place, count = folder / "alive", jax.process_count()
    if count == 1:
        yield
        return
    place.mkdir(parents=True, exist_ok=True)
    files, done = [place / str(i) for i in range(count)], threading.Event()
    own = files.pop(jax.process_index())
    own.touch()
    processes.wait("signs of life")  # those that an earlier run left behind say nothing
    thread = threading.Thread(target=_watch, args=(own, files, done, float(patience)), daemon=True)
    thread.start()
    try:
        yield
        processes.wait("end of run")
    finally:
        done.set()
        thread.join()
    own.unlink(missing_ok=True)
    with suppress(OSError):  # until the last has gone
        place.rmdir()


def _watch(own: Path, others: list[Path], done: threading.Event, patience: float) -> None:
    # Clocks of hosts may differ: what counts is when this one saw another's file change.
    seen: dict[Path, tuple[int, float]] = {}
    while not done.wait(EVERY):
        with suppress(OSError):  # a disk that stumbles is no death
            own.touch()
        for file in others:
            stamp = -1
            with suppress(OSError):
                stamp = file.stat().st_mtime_ns
            if file not in seen or seen[file][0] != stamp:
                seen[file] = (stamp, time.monotonic())
            elif stamp >= 0 and time.monotonic() - seen[file][1] > patience:
                sys.stdout.flush()
                what = (
                    f"another process of this run has ended (number {file.name} gave no sign "
                    f"for {patience:.0f} s)"
                )
                print(
                    f"\nsmda-jax: error: --distributed: {what}; start all of them again: finished "
                    "parts are kept",
                    file=sys.stderr,
                )
                sys.stderr.flush()
                os._exit(2)
