"""The numerics a model of some dtype is run under."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax
import jax.numpy as jnp

DType = Literal["float32", "bfloat16", "float64"]
BYTES: dict[str, int] = {"bfloat16": 2, "float32": 4, "float64": 8}


@contextmanager
def numerics(dtype: Any) -> Iterator[None]:
    """float64 switches x64 on; float32 and wider ask for full-precision products.

    Accelerators default to TF32 or bfloat16 products for float32 operands, which a test on a CPU
    cannot see.
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
