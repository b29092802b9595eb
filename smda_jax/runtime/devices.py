"""The devices of a run: rows (prompts, pairs) are spread over them, parameters repeated or
spread."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from smda_jax.errors import InputError

ROWS, MODEL = "row", "model"  # axes of the mesh


@dataclass(frozen=True)
class Rows:
    """An array whose rows lie along `axis` and do not interact."""

    axis: int = 0

    @property
    def spec(self) -> PartitionSpec:
        """Each device group holds its own rows."""
        return PartitionSpec(*[None] * self.axis, ROWS)


@dataclass(frozen=True)
class Replicated:
    """An array that every device holds whole."""

    @property
    def spec(self) -> PartitionSpec:
        """No axis is spread."""
        return PartitionSpec()


@dataclass(frozen=True)
class Summed(Replicated):
    """A result that is a sum over rows: the devices' parts are added up."""


Placement = Rows | Replicated | Summed


@dataclass(frozen=True)
class Devices:
    """All devices of all processes, in groups of `shards` that hold the parameters together."""

    shards: int = 1

    def check(self) -> None:
        """Raises InputError if the devices cannot be divided into such groups."""
        if self.shards < 1 or jax.device_count() % self.shards:
            what = f"{jax.device_count()} devices cannot be divided by {self.shards}"
            raise InputError("--shard-params", what)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return jax.device_count() // self.shards

    @property
    def several(self) -> bool:
        """Whether there is more than one device."""
        return jax.device_count() > 1

    def mesh(self) -> Mesh:
        """The devices as groups x parts of the model."""
        axes = (AxisType.Auto, AxisType.Auto)
        return jax.make_mesh((self.groups, self.shards), (ROWS, MODEL), axis_types=axes)

    def round_up(self, rows: int) -> int:
        """`rows` rounded up so that every group gets as many."""
        return -(-rows // self.groups) * self.groups

    def place(self, tree: Any, placements: Any) -> Any:
        """Puts arrays where `placements` say: one for all, or a tree that begins like theirs."""
        mesh = self.mesh()

        def put(placement: Placement, part: Any) -> Any:
            sharding = NamedSharding(mesh, placement.spec)

            def leaf(x: Any) -> Any:
                # Parameters are where they belong already.
                now = x.sharding if isinstance(x, jax.Array) else None
                kept = isinstance(now, NamedSharding) and now.mesh == sharding.mesh
                whole = not isinstance(placement, Rows)
                if kept and (whole or now.spec == sharding.spec):  # type: ignore[union-attr]
                    return x
                return jax.device_put(x, sharding)

            return jax.tree.map(leaf, part)

        return None if tree is None else jax.tree.map(put, placements, tree)


_devices: ContextVar[Devices] = ContextVar("devices", default=Devices())  # noqa: B039 (frozen)


def devices() -> Devices:
    """Those that are in use here."""
    return _devices.get()


@contextmanager
def using(chosen: Devices) -> Iterator[None]:
    """Within it, programs run on these devices, and parameters are loaded onto them.

    Raises:
        InputError: see `Devices.check`.
    """
    chosen.check()
    token = _devices.set(chosen)
    try:
        yield
    finally:
        _devices.reset(token)


def fetch(x: Any) -> np.ndarray:
    """The whole array on this host, wherever its parts are."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
