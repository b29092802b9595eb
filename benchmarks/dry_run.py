#!/usr/bin/env python3
"""Traces every program of the engines at a model's full shapes and lowers it for CUDA, without
weights and without a GPU.

    python benchmarks/dry_run.py --shape 3b --dtype bfloat16

Shows that the shapes fit together, that nothing on the way refuses the platform, and how large each
program's inputs and results are; says nothing about time, nor about what the compiler makes of it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import attribution
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from smda_jax.data.batches import pair_batch, prompt_batch
from smda_jax.data.lanes import packed_blocks, packed_pairs, packed_prompts
from smda_jax.jacobian import ask, query
from smda_jax.jacobian.factors import factors
from smda_jax.jacobian.finite import finite
from smda_jax.jacobian.forward import forward
from smda_jax.jacobian.readout import Site, base
from smda_jax.jacobian.reverse import Reads, matrices, pull_block, pull_embedding, start_h, start_y
from smda_jax.model.llama import up_to
from smda_jax.model.precision import DType, jit, numerics

from smda_jax.data.targets import Targets
from smda_jax.model import hf
from smda_jax.model.config import from_hf
from smda_jax.sae.encoder import Encoder


@dataclass(frozen=True)
class DryRun:
    """What to lower."""

    shape: Literal["tiny", "cpu", "1b", "3b"] = "3b"
    """Shapes of the model."""
    dtype: DType = "bfloat16"
    """Of parameters and passes."""
    pairs: int = 16
    """Pairs in a block."""
    prompts: int = 32
    """Prompts in a batch."""
    readouts: int = 8
    """Readouts of a prompt that are pulled back together."""
    platform: str = "cuda"
    """To lower for."""


def size(tree: Any) -> float:
    """GiB of arrays, or of their shapes."""
    return sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**30


def main(c: DryRun) -> None:
    """Lowers the programs one after the other; raises where one cannot be."""
    s = attribution.SHAPES[c.shape]
    config, dtype = from_hf(attribution.hf_config(s), "dry run"), jnp.dtype(c.dtype)
    prompts, pairs = attribution.draw_tokens(
        attribution.Benchmark(pairs=c.pairs, prompts=c.prompts), s["vocab"]
    )
    targets, site = Targets.of([[40, 64, 95], [40, 64, 14]]), Site("resid_post", s["layer"])
    params = hf.abstract_params(config, dtype)
    encoder = Encoder(
        jax.ShapeDtypeStruct((config.hidden, 75), jnp.float32),
        jax.ShapeDtypeStruct((75,), jnp.float32),
    )  # type: ignore[arg-type]
    batch = prompt_batch(prompts, targets, 104, 31, c.prompts)
    whole = prompt_batch(prompts, targets, 104, 0, c.prompts)
    block = pair_batch(pairs, "response", 256, c.pairs)
    (tails,) = packed_blocks([len(p.ids) - 31 + 2 for p in prompts], c.prompts)
    packed = packed_prompts([prompts[i] for i in tails.rows], targets, tails.shape, 31)
    (some,) = ask.pair_blocks(pairs, c.pairs)
    lane = packed_pairs([pairs[i] for i in some.rows], "response", some.shape, 31)
    print(
        f"{c.shape}, {c.dtype}: parameters {size(params):.1f} GiB; GiB of arguments and results "
        "of each program"
    )

    def lower(name: str, program: Any, *args: Any, **static: Any) -> Any:
        traced = program.trace(config, *args, **static)
        text = traced.lower(lowering_platforms=(c.platform,)).as_text()
        out = traced.out_info
        print(
            f"{name:16}{size(args):8.2f}{size(out):8.2f}   {len(text.splitlines()):6} operations "
            f"for {c.platform}",
            flush=True,
        )
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), out)

    with numerics(c.dtype):
        rate, both = jnp.float32(1e-4), {"targets": targets, "site": site}
        lower("base", base, params, packed, **both)
        steps, _ = lower(
            "factors",
            jit(factors, static_argnames=("config", "normalised")),
            params,
            block,
            rate,
            None,
        )
        lower("forward", forward, params, steps, batch, **both)
        lower("finite", finite, params, steps, batch, **both)
        weights = (np.zeros((1, c.prompts, 75), np.float32), np.zeros((1, c.prompts), np.float32))
        gradient = lower("query", query.query, params, packed, encoder, *weights, **both)
        gradient = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), gradient
        )  # as `finish` leaves it
        lower("along", query.along, params, lane, gradient, rate)
        lower("answer", query.answer, params, block, (gradient,), rate, normalised=False)
        own = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params.blocks
        )
        kept = jax.ShapeDtypeStruct(steps.stream.shape[1:], dtype)
        formed = lower("matrices", matrices, own, (kept,), (kept,), None)
        y = lower("start_y", start_y, params, (steps,), whole, targets=targets)
        lower(
            "pull_block, Y",
            pull_block,
            own,
            drop(y.stream),
            y.g,
            y.total,
            formed,
            None,
            stream="resid_post",
        )
        below = jax.eval_shape(lambda p: up_to(p, site.layer), params)
        x = lower(
            "start_h",
            start_h,
            below,
            np.zeros((c.prompts, 96), np.int32),
            pairs=c.pairs,
            readouts=c.readouts,
        )
        at = jax.ShapeDtypeStruct((c.prompts,), jnp.int32)
        reads = Reads(at, jax.ShapeDtypeStruct((c.readouts, c.prompts, config.hidden), dtype))  # type: ignore[arg-type]
        lower(
            "pull_block, X",
            pull_block,
            own,
            drop(x.stream),
            x.g,
            x.total,
            formed,
            reads,
            stream="resid_post",
        )
        tokens, seen = np.zeros((c.prompts, 96), np.int32), np.arange(1024, dtype=np.int32)
        lower("pull_embedding", pull_embedding, (steps,), tokens, seen, x.g, x.total)


def drop(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Of one layer."""
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


if __name__ == "__main__":
    main(tyro.cli(DryRun))
