"""Compiled programs, and whether they fit into memory."""

import os
import time
from pathlib import Path
from typing import Any

import jax

from smda_jax.model.config import ModelConfig


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
_compiled: dict[Any, Any] = {}


def run(program: Any, config: ModelConfig, *args: Any, limit: int, **static: Any) -> Any:
    """Calls `program(config, *args, **static)`, jitted, once the compiled program's own memory analysis says that it fits.

    Raises:
        TooLargeError: it does not, or running it exhausted the memory.
    """
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
    # A program also depends on the precision it was traced under.
    context = tuple(getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_matmul_precision"))
    key = (program, config, structure, shapes, tuple(static.items()), context)
    try:
        if key not in _compiled:
            start = time.perf_counter()
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
