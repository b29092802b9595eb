"""The devices of a run: prompts and pairs are spread over them, parameters repeated on each or spread too."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from smda_jax.errors import InputError
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import linear_sizes

ROWS, MODEL = "row", "model"
_shards = 1


def connect() -> None:
    """Joins the other processes of a run, as JAX detects them (SLURM, Kubernetes, Open MPI, a TPU pod), or as the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say.

    Raises:
        InputError: no other process can be reached.
    """
    given = {key: os.environ.get(f"JAX_{key.upper()}") for key in ("num_processes", "process_id")}
    options: dict[str, Any] = {key: int(value) for key, value in given.items() if value is not None}
    try:
        jax.distributed.initialize(**options)
    except Exception as error:  # the runtime raises several types
        first = str(error).strip().splitlines()[0]
        raise InputError(
            "--distributed", f"cannot join the other processes: {first}", "start one per host, as scripts/ show"
        ) from error


def leave(status: int) -> None:
    """Ends a process that has failed. The ordinary way out would wait minutes for the others, who may have ended before."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        os._exit(status)
    sys.exit(status)


def shard_parameters(ways: int) -> None:
    """Spreads the parameters that are loaded from now on over groups of `ways` devices.

    Raises:
        InputError: the devices cannot be divided so.
    """
    global _shards
    if ways < 1 or jax.device_count() % ways:
        raise InputError("--shard-params", f"{jax.device_count()} devices cannot be divided by {ways}")
    _shards = ways


def mesh() -> Mesh:
    """All devices of all processes, as rows x parts of the model."""
    shape = (jax.device_count() // _shards, _shards)
    return jax.make_mesh(shape, (ROWS, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def is_spread() -> bool:
    """Whether there is more than one device."""
    return jax.device_count() > 1


def rows_of(size: int) -> int:
    """`size` rounded up so that every group of devices gets as many rows."""
    ways = jax.device_count() // _shards
    return -(-size // ways) * ways


def parameter_sharding(config: ModelConfig) -> Callable[[str], NamedSharding] | None:
    """Where a parameter lives, by its name (`model.hf.parameter_path`); None on a single device.

    Projections into heads and the MLP are split by their output, projections back by their input, tables by their rows.
    """
    if not is_spread():
        return None
    own, sizes = mesh(), linear_sizes(config)

    def where(path: str) -> NamedSharding:
        name, _, part = path.partition(".")
        spec: tuple[str | None, ...] = ()
        if name in ("embed", "unembed") and config.vocab % _shards == 0:
            spec = (MODEL,)
        elif part == "w":
            inner, outer = sizes[name]
            if name in ("o", "down") and inner % _shards == 0:
                spec = (None, None, MODEL)
            elif name not in ("o", "down") and outer % _shards == 0:
                spec = (None, MODEL)
        return NamedSharding(own, PartitionSpec(*spec))

    return where


def place(tree: Any, axes: Any) -> Any:
    """Arrays spread along an axis, or repeated on every device (-1); `axes` is one for all or a tree beginning like theirs."""

    def one(axis: int, part: Any) -> Any:
        sharding = NamedSharding(mesh(), spec(axis))

        def leaf(x: Any) -> Any:
            # Parameters are where they belong already.
            own = x.sharding if isinstance(x, jax.Array) else None
            placed = isinstance(own, NamedSharding) and own.mesh == sharding.mesh and (axis < 0 or own.spec == sharding.spec)
            return x if placed else jax.device_put(x, sharding)

        return jax.tree.map(leaf, part)

    return None if tree is None else jax.tree.map(one, axes, tree)


def spec(axis: int) -> PartitionSpec:
    """Rows along `axis`; -1 for repeated on every device."""
    return PartitionSpec() if axis < 0 else PartitionSpec(*[None] * axis, ROWS)


def fetch(x: Any) -> np.ndarray:
    """The whole array on this host, wherever its parts are."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


@contextmanager
def together() -> Iterator[None]:
    """Says in one line that another process has ended, where work in common fails.

    Raises:
        InputError: it has.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the runtime, the collectives and the checkpointer each raise their own
        if jax.process_count() == 1:
            raise
        first = str(error).strip().splitlines()[0][:200]
        raise InputError(
            "--distributed",
            f"another process of this run has ended ({first})",
            "start all of them again: finished parts are kept",
        ) from error


def writes() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
