"""Several processes of one run: joining, waiting, leaving."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

from smda_jax.errors import InputError


def connect() -> None:
    """Joins the other processes of a run.

    JAX detects them (SLURM, Kubernetes, Open MPI, a TPU pod), or the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say which they are.

    Raises:
        InputError: no other process can be reached.
    """
    given = {key: os.environ.get(f"JAX_{key.upper()}") for key in ("num_processes", "process_id")}
    options: dict[str, Any] = {k: int(value) for k, value in given.items() if value is not None}
    try:
        jax.distributed.initialize(**options)
    except Exception as error:  # the runtime raises several types
        first = str(error).strip().splitlines()[0]
        what = f"cannot join the other processes: {first}"
        raise InputError("--distributed", what, "start one per host, as scripts/ show") from error


def leave(status: int) -> None:
    """Ends a process that has failed, at once.

    The ordinary way out would wait minutes for the others, who may have ended before.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        os._exit(status)
    sys.exit(status)


@contextmanager
def together() -> Iterator[None]:
    """Says in one line that another process has ended, where work in common fails.

    Raises:
        InputError: another process has ended.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the runtime, the collectives and the checkpointer raise their own
        if jax.process_count() == 1:
            raise
        first = str(error).strip().splitlines()[0][:200]
        what = f"another process of this run has ended ({first})"
        remedy = "start all of them again: finished parts are kept"
        raise InputError("--distributed", what, remedy) from error


def writes() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
