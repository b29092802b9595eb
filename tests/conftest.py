"""Shared checkpoints; strict promotion; no network."""

import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Hundreds of tiny programs are compiled once and run once: compiling them well would cost more than it saves.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import numpy as np
import oracle
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests run the same programs, in this process and in commands they start.
COMPILED = Path(tempfile.gettempdir()) / f"smda-jax-tests-{os.getuid()}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

EMBEDDED = Path(__file__).parent.parent / "smda_jax" / "embedded"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if all(device.platform == "cpu" for device in jax.devices()):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random checkpoint of every kind the oracle knows."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: oracle.make_checkpoint(root / kind, kind) for kind in oracle.KINDS}


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with the embedded model's tokenizer: quick, and nobody trained it."""
    folder = oracle.make_checkpoint(tmp_path_factory.mktemp("chat") / "model", "llama3_tied_gqa", vocab_size=704)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED / "model" / name, folder)
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
