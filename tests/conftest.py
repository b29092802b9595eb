"""Shared checkpoints; strict promotion; no network."""

import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Hundreds of tiny programs are compiled once and run once: compiling them well would cost more than
# it saves. Without fusion emitters it takes a third of the time; later versions know no such flag.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib") < "0.11" else "",
    ]
)

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from support import COMPILED, EMBEDDED, PAIRS, PROMPTS

from smda_jax.runtime import programs
from smda_jax.sae.formats import save_saelens

programs.COMPILE_SECONDS = 1e-3  # or else a handful of texts would all have one width
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if all(device.platform == "cpu" for device in jax.devices()):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


@pytest.fixture(autouse=True)
def mappings() -> Iterator[None]:
    """Compiled programs take memory mappings, of which Linux grants a process 65,530: beyond them
    the compiler crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 25_000:
        programs.compiled.forget()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random checkpoint of every kind the oracle knows."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: oracle.make_checkpoint(root / kind, kind) for kind in oracle.EVERY}


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with the embedded model's tokenizer: quick, and nobody trained
    it."""
    folder = oracle.make_checkpoint(
        tmp_path_factory.mktemp("chat") / "model", "llama3_tied_gqa", vocab_size=704
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED / "model" / name, folder)
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def files(tmp_path_factory, chat_checkpoint) -> dict[str, Path]:
    """Prompts, pairs and a random SAE for the tiny random checkpoint (width 24, site resid_post of
    layer 1)."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "prompts.jsonl").write_text(
        "\n".join(
            json.dumps({"prompt": p, "prompt_label": lab, "category": lab}) for p, lab in PROMPTS
        )
    )
    (folder / "pairs.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p, "response": r, "label": lab}) for p, r, lab in PAIRS)
    )
    r = np.random.default_rng(2)
    arrays = {"W_enc": (24, 33), "b_enc": (33,), "W_dec": (33, 24), "b_dec": (24,)}
    values = {k: jnp.asarray(r.normal(size=s) * 0.4, jnp.float32) for k, s in arrays.items()}
    save_saelens(
        folder / "sae", values, threshold=0.4, hook="blocks.1.hook_resid_post", model="tiny"
    )
    return {
        "model": chat_checkpoint,
        "sae": folder / "sae",
        "eval": folder / "prompts.jsonl",
        "pairs": folder / "pairs.jsonl",
    }
