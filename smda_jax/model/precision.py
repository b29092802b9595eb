"""The numerics a model of some dtype is run under."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

DType = Literal["float32", "bfloat16", "float64"]

# On jax 0.10 the CPU compiler's YNN fusions compute some float32 products of batched attention gradients wrongly, by tens of
# per cents, at sizes that no small test reaches (tests/test_engines.py has one that does); and its fusion emitters take three
# times as long to compile programs that run as fast. 0.12 has neither.
_OF_OLD = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_use_fusion_emitters": False}
jit = partial(jax.jit, compiler_options=_OF_OLD if jax.__version_info__ < (0, 12) else None)


@contextmanager
def numerics(dtype: Any) -> Iterator[None]:
    """float64 switches x64 on; float32 and wider ask for full-precision products.

    Accelerators default to TF32 or bfloat16 products for float32 operands, which a test on a CPU cannot see.
    """
    dtype = jnp.dtype(dtype)
    with (
        jax.enable_x64(dtype == jnp.float64),
        jax.default_matmul_precision("default" if dtype == jnp.bfloat16 else "highest"),
    ):
        yield


def wide(dtype: Any) -> Any:
    """Precision of norms, softmax and losses: at least float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32
