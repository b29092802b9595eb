"""Other ways to the same figures: dense JAX, the PyTorch loop, bergson."""

import json
import statistics
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from smda_jax.data.batches import blocks_by_length, pair_batch, prompt_batch
from smda_jax.jacobian import ask, passes
from smda_jax.jacobian.evaluation import Evaluation
from smda_jax.jacobian.passes import Update
from smda_jax.jacobian.query import Query
from smda_jax.jacobian.readout import read
from smda_jax.model.llama import SCALE, Params
from smda_jax.model.precision import numerics

import smda_jax as smda
from smda_jax.data.chat import PairTokens
from smda_jax.data.targets import Targets

ETA = 1e-4


def agree(name: str, got: np.ndarray, want: np.ndarray, tolerance: float) -> float:
    """Raises if two ways to the same figures differ."""
    worst = float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())
    assert worst < tolerance, f"{name}: differs by {worst:.1e}"
    return worst


def dense(e: Evaluation, pairs: list[PairTokens]) -> tuple[np.ndarray, list[float]]:
    """JAX as it comes: dense per-pair gradients, the model linearised in its parameters, tangents
    of a few pairs together."""
    config, params = e.model.config, e.model.params

    @partial(jax.jit, static_argnames="width")
    def gradients(params: Params, batch: Any, width: int) -> Params:
        from smda_jax.model.llama import logits

        def loss(params: Params, tokens: Any, at: Any, target: Any, weight: Any) -> Any:
            logp = jax.nn.log_softmax(
                logits(config, params, tokens[None])[0, at].astype(jnp.float32)
            )
            return -jnp.sum(
                jnp.take_along_axis(logp, target[:, None], 1)[:, 0] * weight.astype(logp.dtype)
            )

        axes = (None, 0, 0, 0, 0)
        return jax.vmap(jax.grad(loss), axes)(
            params, batch.tokens, batch.at, batch.target, batch.weight
        )

    @jax.jit
    def push(params: Params, tangents: Params, batch: Any) -> Any:
        _, linear = jax.linearize(lambda p: read(config, p, batch, e.targets, e.site)[:2], params)
        return jax.vmap(linear)(tangents)

    def once() -> np.ndarray:
        batch = jax.tree.map(jnp.asarray, pair_batch(pairs, "response", 256, len(pairs)))
        g = gradients(params, batch, 256)
        dy = np.zeros((len(pairs), len(e.tokens)), np.float32)
        lengths = [len(t.ids) + 2 for t in e.tokens]
        for rows, width, size in blocks_by_length(lengths, 64):
            prompts = prompt_batch([e.tokens[i] for i in rows], e.targets, width, 0, size)
            dy[:, rows] = -ETA * np.asarray(push(params, g, prompts)[1], np.float32)[:, : len(rows)]
        return dy

    with numerics(e.model.dtype):
        dy = once()
        start = time.perf_counter()
        once()
        return dy, [(time.perf_counter() - start) / len(pairs)] * len(pairs)


class Loops:
    """Both PyTorch loops, their results held against engine finite first.

    A call runs one more pair through each. Called between whatever else is timed, they meet the
    machine in the same moments: one that changes its speed changes it for all.
    """

    def __init__(
        self, e: Evaluation, folder: Path, few: list[PairTokens], agreement: dict[str, float]
    ) -> None:
        from pytorch_loop import Loop  # type: ignore[import-not-found]

        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self.few, self.seconds = few, {"PyTorch loop": [], "PyTorch loop, tuned": []}
        self.loops = {
            name: Loop(
                folder,
                e.tokens,
                e.targets.sequences,
                e.site.layer,
                tuned="tuned" in name,
                device=device,
            )
            for name in self.seconds
        }
        # A larger step for the comparison: in float32 the loop's differences would be rounding
        # otherwise.
        eta = 3e-2
        steps, _ = passes.factors_of(e.model, few[:1], Update(eta))
        true = smda.finite(e, steps, block=32)
        for name, loop in self.loops.items():
            _, dy, _ = loop.run(few[:1], eta)
            agreement[f"finite against {name}"] = agree(
                name, true.y, dy, 0.2 if e.model.dtype == jnp.bfloat16 else 5e-3
            )

    def __call__(self) -> None:
        """Runs the next pair."""
        for name, loop in self.loops.items():
            own = self.few[len(self.seconds[name]) % len(self.few)]
            self.seconds[name] += loop.run([own], ETA)[2]
            print(f"{name}: {self.seconds[name][-1]:.2f} s for a pair", flush=True)

    def per_pair(self) -> dict[str, float]:
        """Median seconds."""
        return {name: statistics.median(seconds) for name, seconds in self.seconds.items()}


def bergson(
    e: Evaluation, folder: Path, python: Path, pairs: list[PairTokens], agreement: dict[str, float]
) -> tuple[float, float]:
    """Seconds per prompt and per pair of bergson's scores; a few of each are run, and its scores
    held against ours.

    It covers linear layers only, so that nothing else is counted in ours for the comparison.
    """
    e = replace(
        e,
        tokens=e.tokens[:8],
        h=e.h[:8],
        z=e.z[:8],
        y=e.y[:8],
        targets=Targets.of([e.targets.sequences[0]]),
    )
    target = [int(t) for t in e.targets.sequences[0]]
    asked = {
        "prompts": [
            {"ids": [int(i) for i in t.ids] + target, "first": len(t.ids)} for t in e.tokens
        ],
        "pairs": [{"ids": [int(i) for i in t.ids], "first": t.response} for t in pairs],
    }
    (folder / "asked.json").write_text(json.dumps(asked))
    files = [folder, folder / "asked.json", folder / "answered.json"]
    subprocess.run(
        [python, Path(__file__).parent / "bergson_peer.py", *files], check=True, capture_output=True
    )
    found = json.loads(files[2].read_text())
    with numerics(e.model.dtype):
        g = ask.pull_policy(e, None, np.full((1, 8), 1 / 8)).gradient
        norms = {name: jnp.zeros_like(getattr(g.blocks, name)) for name in SCALE}
        others = {name: jnp.zeros_like(getattr(g, name)) for name in ("embed", "final_norm")}
        linear = replace(g, blocks=replace(g.blocks, **norms), **others)
    ours, _ = ask.along(e.model, pairs, Query(linear), -1.0)
    agreement["score of bergson"] = agree(
        "bergson", found["scores"], ours[0], 0.1 if e.model.dtype == jnp.bfloat16 else 2e-3
    )
    print(
        f"bergson: {found['seconds_per_prompt']:.2f} s per prompt, "
        f"{found['seconds_per_pair']:.2f} s per pair",
        flush=True,
    )
    return found["seconds_per_prompt"], found["seconds_per_pair"]
