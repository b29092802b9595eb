"""Compiled programs: spread over the devices there are, and asked whether they fit into memory before they run."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from smda_jax.data.batches import LengthBlock
from smda_jax.data.lanes import LaneBlock
from smda_jax.model import mesh
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import linear_sizes
from smda_jax.model.precision import jit

SUM = "sum"  # of an output: the parts of all devices added up


class TooLargeError(Exception):
    """A program needs more memory than there is; a smaller block may fit."""


def memory_limit() -> int:
    """Bytes that programs may take: of an accelerator nearly all it has, of a host half of what it (or its container) has."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] * 0.9) - stats.get("bytes_in_use", 0)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(file).read_text().strip() if Path(file).exists() else "max"
        total = min(total, int(text)) if text.isdigit() else total
    return total // 2 // max(1, jax.local_device_count())


class Stopwatch:
    """Seconds spent compiling so far, in this process."""

    seconds = 0.0


compiling = Stopwatch()
HELD = 64  # compiled programs; a CPU's take hundreds of memory mappings each, and Linux grants a process 65,530
_compiled: dict[Any, Any] = {}


COMPILING = 2.0  # seconds that a program takes to compile, about
RATE = {"cpu": 1e11}  # operations per second that it then does, about; elsewhere:
ELSEWHERE = 2e14


def worth(config: ModelConfig, passes: float | int) -> float:
    """Tokens of padding that take as long as compiling for one more width, each token `passes` times through the model.

    From constants, not from what is measured: what a run did must be found again by its continuation.
    """
    each = config.layers * 2 * sum(i * o for i, o in linear_sizes(config).values())
    return COMPILING * RATE.get(jax.default_backend(), ELSEWHERE) / (each * passes)


def forget() -> None:
    """Drops every compiled program, this module's and JAX's own."""
    _compiled.clear()
    jax.clear_caches()


def run(program: Any, config: ModelConfig, *args: Any, limit: int, axes: tuple[Any, ...], out: Any, **static: Any) -> Any:
    """Calls `program(config, *args, **static)`, jitted, once the compiled program's own memory analysis says that it fits.

    Args:
        program: a jitted function whose rows (prompts, or pairs) do not interact.
        config: of the model.
        args: arrays.
        limit: bytes of one device.
        axes: of every argument (or part of one) the axis that rows lie along; -1 where it has none.
        out: the same of the result; `SUM` where it is a sum over rows.
        static: static arguments by name.

    Raises:
        TooLargeError: it does not fit, or running it exhausted the memory.
    """
    spread = mesh.is_spread()
    if spread:
        args = tuple(mesh.place(arg, axis) for arg, axis in zip(args, axes, strict=True))
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((x.shape, x.dtype, getattr(x, "sharding", None) if spread else None) for x in leaves)
    # A program also depends on the precision it was traced under.
    context = tuple(getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_matmul_precision"))
    key = (program, config, structure, shapes, tuple(static.items()), context)
    try:
        if key not in _compiled:
            if len(_compiled) >= HELD and jax.default_backend() == "cpu":
                forget()
            start = time.perf_counter()
            if spread:
                compiled = jit(_spread(program, config, axes, out, static)).lower(*args).compile()
            else:
                compiled = program.lower(config, *args, **static).compile()
            analysis = compiled.memory_analysis()
            needs = 0 if analysis is None else analysis.temp_size_in_bytes + analysis.output_size_in_bytes
            _compiled[key] = (compiled, needs)
            compiling.seconds += time.perf_counter() - start
        compiled, needs = _compiled[key]
        if needs > limit:
            raise TooLargeError(f"needs {needs / 2**30:.1f} GiB of {limit / 2**30:.1f}")
        return jax.block_until_ready(compiled(*args))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower():
            raise TooLargeError(str(error).splitlines()[0]) from error
        raise


Block = TypeVar("Block", LengthBlock, LaneBlock)


def for_each(
    lengths: Sequence[int], most: int, split: Callable[[list[int], int], Iterable[Block]], visit: Callable[[Block], None]
) -> None:
    """Visits blocks of items, as `split` makes them of lengths and the most items of a block.

    Where one does not fit into memory, what is left is done in blocks of half the size.

    Raises:
        TooLargeError: not even one item at a time fits.
    """
    left = np.arange(len(lengths))
    while len(left):
        try:
            for part in split([lengths[i] for i in left.tolist()], most):
                visit(part._replace(rows=left[part.rows]))
                left[part.rows] = -1
        except TooLargeError:
            if most == 1:
                raise
            most = -(-most // 2)
        left = left[left >= 0]


def _spread(program: Any, config: ModelConfig, axes: tuple[Any, ...], out: Any, static: dict[str, Any]) -> Any:
    """The program on each device's own rows; how parameters are split is left to the compiler."""

    def own(*args: Any) -> Any:
        result = program.__wrapped__(config, *args, **static)
        # Where every device holds the same rows there is nothing to add up (and XLA refuses to).
        return jax.lax.psum(result, mesh.ROWS) if out == SUM and mesh.mesh().shape[mesh.ROWS] > 1 else result

    specs = jax.tree.map(mesh.spec, -1 if out == SUM else out)
    return jax.shard_map(
        own, mesh=mesh.mesh(), in_specs=jax.tree.map(mesh.spec, axes), out_specs=specs, axis_names={mesh.ROWS}, check_vma=False
    )
