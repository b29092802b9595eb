#!/usr/bin/env python3
"""Every engine, the PyTorch loop and dense JAX on the same shapes, in one run; writes a record to
benchmarks/results.

    python benchmarks/attribution.py --shape cpu            # hidden 512, 8 layers: for a machine
    without an accelerator python benchmarks/attribution.py --shape 3b --dtype bfloat16 --prompts
    7826          # Llama-3.2-3B's, for one large GPU

Weights are drawn at random, lengths as the paper's: 31 header tokens and 15 to 60 more, pairs of
100 to 250 tokens. Agreement is checked before a time is printed. Times are without compilation,
which is given apart; the loop and dense JAX are measured on a few pairs (median) and multiplied up.
"""

import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from peers import ETA, Loops, agree, bergson, dense  # type: ignore[import-not-found]
from smda_jax.data.batches import blocks_by_length
from smda_jax.jacobian import ask, passes, plan, programs
from smda_jax.jacobian.evaluation import Evaluation, Model, encode, read_prompts
from smda_jax.jacobian.passes import Update
from smda_jax.jacobian.readout import Site
from smda_jax.model.llama import Params
from smda_jax.model.precision import DType, numerics

import smda_jax as smda
from smda_jax.data.chat import PairTokens, PromptTokens
from smda_jax.data.targets import Targets
from smda_jax.model import hf
from smda_jax.model.config import ModelConfig, from_hf
from smda_jax.policy.influence import decompose, functionals
from smda_jax.policy.ridge import ridge
from smda_jax.sae.encoder import Encoder

ROOT = Path(__file__).resolve().parent.parent
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": dict(
        hidden=64, layers=3, heads=4, kv=2, head_dim=16, intermediate=160, vocab=512, layer=1
    ),
    "small": dict(
        hidden=256, layers=4, heads=4, kv=2, head_dim=64, intermediate=704, vocab=2048, layer=1
    ),
    "cpu": dict(
        hidden=512, layers=8, heads=8, kv=4, head_dim=64, intermediate=1408, vocab=4096, layer=2
    ),
    "1b": dict(
        hidden=2048,
        layers=16,
        heads=32,
        kv=8,
        head_dim=64,
        intermediate=8192,
        vocab=128256,
        layer=6,
    ),
    "3b": dict(
        hidden=3072,
        layers=28,
        heads=24,
        kv=8,
        head_dim=128,
        intermediate=8192,
        vocab=128256,
        layer=10,
    ),
}


@dataclass(frozen=True)
class Benchmark:
    """What to time."""

    shape: Literal["tiny", "small", "cpu", "1b", "3b"] = "cpu"
    """Shapes of the model."""
    layers: int = 0
    """If not 0, so many layers instead."""
    pairs: int = 200
    """Training pairs."""
    prompts: int = 256
    """Evaluation prompts."""
    features: int = 24
    """Features of the policy, a third of them active per prompt."""
    dtype: DType = "float32"
    """Of the engines; the loop is always float32."""
    engines: tuple[str, ...] = ("auto", "coefficients", "score")
    """What to time: auto, forward, reverse, finite; coefficients and score are engine query."""
    loop_pairs: int = 3
    """Pairs that the loops and dense JAX are measured on; 0 leaves them out."""
    bergson: Path | None = None
    """The python of an environment that has bergson (see bergson_peer.py), to be measured too."""
    query_pairs: tuple[int, ...] = ()
    """Further numbers of pairs for the score alone."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the record."""


def hf_config(s: dict[str, Any]) -> dict[str, Any]:
    """config.json of a shape."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": s["vocab"],
        "hidden_size": s["hidden"],
        "intermediate_size": s["intermediate"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "num_key_value_heads": s["kv"],
        "head_dim": s["head_dim"],
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def draw_params(config: ModelConfig, dtype: Any) -> Params:
    """Random weights of the size that keeps every stream near one."""

    @partial(jax.jit, static_argnums=1)
    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return (jax.random.normal(key, shape, jnp.float32) * shape[-1] ** -0.5).astype(dtype)

    leaves, tree = jax.tree.flatten(hf.abstract_params(config, dtype))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    params = jax.tree.unflatten(
        tree, [draw(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )
    ones = jax.tree.map(
        jnp.ones_like, (params.blocks.attn_norm, params.blocks.mlp_norm, params.final_norm)
    )
    blocks = params.blocks.replace(attn_norm=ones[0], mlp_norm=ones[1])
    return params.replace(blocks=blocks, final_norm=ones[2])


def draw_tokens(b: Benchmark, vocab: int) -> tuple[list[PromptTokens], list[PairTokens]]:
    """Prompts and pairs of the paper's lengths."""
    r = np.random.default_rng(0)
    header = r.integers(0, vocab, 31).tolist()

    def text(n: int) -> list[int]:
        return r.integers(0, vocab, n).tolist()

    prompts = []
    for n in r.integers(15, 61, b.prompts):
        body = header + text(int(n))
        prompts.append(PromptTokens(body + text(4), len(body) - 1))
    pairs = []
    for n in r.integers(100, 251, max([b.pairs, *b.query_pairs])):
        first = int(31 + r.integers(15, 61))
        pairs.append(PairTokens(header + text(int(n) - 31), first, int(n)))
    return prompts, pairs


def draw_encoder(config: ModelConfig, features: int, h: np.ndarray) -> Encoder:
    """Random features, a third of the prompts in each."""
    W = np.random.default_rng(1).normal(size=(config.hidden, features)) * config.hidden**-0.5
    with numerics(h.dtype):
        return Encoder(
            jnp.asarray(W, h.dtype), jnp.asarray(-np.quantile(h @ W, 2 / 3, axis=0), h.dtype)
        )


class Clock:
    """Seconds of a call without the compilation in it."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def __call__(self, name: str, call: Callable[[], Any], flop: float) -> Any:
        before, start = programs.compiling.seconds, time.perf_counter()
        out = jax.block_until_ready(call())
        total, compiling = time.perf_counter() - start, programs.compiling.seconds - before
        self.rows[name] = {"seconds": total - compiling, "compile_seconds": compiling, "flop": flop}
        print(
            f"{name}: {total - compiling:.1f} s, and {compiling:.1f} s of compilation", flush=True
        )
        return out


def main(b: Benchmark, write: bool = True) -> dict[str, Any]:
    """Checks, times, prints the table → the record, which is written too."""
    shape = SHAPES[b.shape] | ({"layers": b.layers} if b.layers else {})
    config = from_hf(hf_config(shape), "benchmark")
    targets, site = (
        Targets.of(
            [[40, 649, 956], [40, 649, 1431]]
            if shape["vocab"] > 1431
            else [[40, 64, 95], [40, 64, 14]]
        ),
        Site("resid_post", shape["layer"]),
    )
    prompts, everything = draw_tokens(b, shape["vocab"])
    pairs = everything[: b.pairs]
    with numerics(b.dtype):
        params = draw_params(config, jnp.dtype(b.dtype))
    model = Model(config, params, None)  # type: ignore[arg-type]
    reading = read_prompts(model, prompts, targets, site)
    h, y, also = (np.asarray(v) for v in reading)
    encoder = draw_encoder(config, b.features, h)
    z, active = encode(encoder, h)
    e = Evaluation(
        model, prompts, targets, site, encoder, list(range(b.features)), h, also, z, active, y
    )
    X, Y = e.x.astype(np.float64), e.y.astype(np.float64)
    W = ridge(X, Y, 5.0)
    with numerics(b.dtype):
        rate = plan.measured_rate(b.dtype, 30)
    update, limit, clock, bf16 = (
        Update(ETA),
        programs.memory_limit(),
        Clock(),
        b.dtype == "bfloat16",
    )

    def work(keep: Any, count: int) -> plan.Workload:
        return plan.Workload(
            config,
            count,
            len(prompts),
            float(np.mean([len(t.ids) for t in prompts])) + 2,
            31,
            float(np.mean([len(t.ids) for t in everything[:count]])),
            31,
            float(np.mean([len(t.ids) - t.response for t in everything[:count]])),
            b.features,
            float(active.sum(1).mean()),
            site.layer,
            targets.positions,
            1,
            keep,
            jnp.dtype(b.dtype).itemsize,
        )

    def push(engine: str) -> Any:
        p = plan.choose(work("active", len(pairs)), limit, engine)
        worth = np.inf if p.engine == "reverse" else programs.worth(config, 3)
        dx, dy = (
            np.zeros((len(pairs), *X.shape), np.float32),
            np.zeros((len(pairs), len(Y)), np.float32),
        )
        for rows, width, size in blocks_by_length([len(t.ids) for t in pairs], p.pair_block, worth):
            own = [pairs[i] for i in rows]
            if p.engine == "reverse":
                groups, _, back = passes.in_groups(model, own, update)
                out = smda.reverse(e, groups, block=p.block)
            else:
                steps, _ = passes.factors_of(model, own, update, width=width, rows=size)
                back = np.arange(len(rows))
                out = (smda.finite if p.engine == "finite" else smda.forward)(
                    e, steps, block=p.block
                )
            dx[rows], dy[rows] = out.x[back], out.y[back]
        return dx, dy

    def asked(keep: Any, count: int) -> np.ndarray:
        w = work(keep, count)
        p = plan.choose(w, limit, "query")
        u = W[None] if keep == "score" else np.eye(b.features)
        f = functionals(X, Y, W, 5.0, u)
        wx, wy = f.weight_x() * active, f.weight_y()
        group = len(u) if keep == "score" else max(1, plan.functionals_at_a_time(w, limit) // 2)
        values = []
        for start in range(0, len(u), group):
            part = slice(start, start + group)
            if keep == "score":
                queries = (ask.pull_policy(e, wx, wy, block=p.block),)
            else:
                queries = tuple(
                    ask.pull_policy(e, *w_, block=p.block)
                    for w_ in ((wx[part], None), (None, wy[part]))
                )
            out = [np.zeros((len(q.gradient.embed), count)) for q in queries]
            if keep == "score":
                for rows, shape_ in ask.pair_blocks(everything[:count], p.pair_block):
                    own = [everything[i] for i in rows]
                    out[0][:, rows], _ = ask.along(
                        model, own, queries[0], ETA, shape=shape_, shared=31
                    )
            else:
                lengths = [len(t.ids) for t in everything[:count]]
                for rows, width, size in blocks_by_length(
                    lengths, p.pair_block, programs.worth(config, 3)
                ):
                    own = [everything[i] for i in rows]
                    got, _ = ask.answer(model, own, queries, update, width=width, rows=size)
                    for into, value in zip(out, got, strict=True):
                        into[:, rows] = value
            values.append(out)
        return np.concatenate([np.stack(v) for v in values], axis=1)

    found, agreement, few = {}, {}, pairs[: b.loop_pairs]
    place = tempfile.TemporaryDirectory()
    loops = None
    if few:
        hf.save(Path(place.name), hf_config(shape), e.model.params)
        loops = Loops(e, Path(place.name), few, agreement)
        loops()
    for name in b.engines:
        keep = name if name in ("score", "coefficients") else "active"
        chosen = (
            "query" if keep == name else plan.choose(work("active", len(pairs)), limit, name).engine
        )
        flop = plan.prices(work(keep, len(pairs)), limit)[chosen].total
        call = partial(asked, keep, len(pairs)) if keep == name else partial(push, chosen)
        label = (
            f"query: {name}" if keep == name else f"{name}: {chosen}" if name == "auto" else name
        )
        found[name] = clock(label, call, flop)
        if loops is not None:
            loops()
    for count in b.query_pairs:
        clock(
            f"query: score of {count}",
            partial(asked, "score", count),
            plan.prices(work("score", count), limit)["query"].total,
        )

    full = next((found[k] for k in ("auto", "reverse", "forward") if k in found), None)
    if full is not None:
        part = decompose(X, Y, W, full[0], full[1], 5.0)
        tolerance = 0.1 if bf16 else 2e-3
        if "score" in found:
            agreement["score"] = agree("score", found["score"][0, 0], part.score, tolerance)
        if "coefficients" in found:
            agreement["delta_w_x"] = agree(
                "ΔW_X", found["coefficients"][0].T, part.delta_w_x, tolerance
            )
            agreement["delta_w_y"] = agree(
                "ΔW_Y", found["coefficients"][1].T, part.delta_w_y, tolerance
            )
    per_pair: dict[str, float] = {}
    if loops is not None:
        dy, seconds = dense(e, few)
        per_pair["dense JAX jvp"] = statistics.median(seconds)
        if full is not None:
            agreement["dense_delta_y"] = agree(
                "dense", full[1][: len(few)], dy, 0.1 if bf16 else 2e-3
            )
        loops()
        per_pair |= loops.per_pair()
        if b.bergson is not None:
            prompt, pair = bergson(e, Path(place.name), b.bergson, pairs[:8], agreement)
            per_pair["bergson: score"] = prompt * len(prompts) / len(pairs) + pair
    place.cleanup()
    with numerics(
        b.dtype
    ):  # where machines change their speed, the faster moment is what they can do
        rate = max(rate, plan.measured_rate(b.dtype, 30))
    table(b, clock, per_pair, rate, len(pairs))
    content = record(b, shape, clock, per_pair, rate, agreement, float(active.sum(1).mean()))
    if write:
        b.out.mkdir(parents=True, exist_ok=True)
        path = b.out / f"attribution-{b.shape}-{jax.default_backend()}-{content['time']}.json"
        path.write_text(json.dumps(content, indent=2) + "\n")
        print(f"record   {path}")
    return content


def table(b: Benchmark, clock: Clock, per_pair: dict[str, float], rate: float, pairs: int) -> None:
    """One line per way."""
    loop, tuned = per_pair.get("PyTorch loop"), per_pair.get("PyTorch loop, tuned")
    print(
        f"\n{'':28}{'s':>10}{'pairs/s':>10}{'FLOP':>10}{'share':>7}{'x loop':>9}{'x tuned':>9}{'compile':>9}"
    )
    rows = {name: (r["seconds"], r["flop"], r["compile_seconds"]) for name, r in clock.rows.items()}
    rows |= {name + " *": (s * pairs, None, 0.0) for name, s in per_pair.items()}
    for name, (seconds, flop, compiling) in rows.items():
        count = int(name.rsplit(" ", 1)[1]) if " of " in name else pairs
        share = "" if flop is None else f"{flop / seconds / rate:.0%}"
        ratios = ["" if v is None else f"{v * count / seconds:.1f}" for v in (loop, tuned)]
        print(
            f"{name:28}{seconds:10.1f}{count / seconds:10.3g}{'' if flop is None else f'{flop:.1e}':>10}{share:>7}"
            f"{ratios[0]:>9}{ratios[1]:>9}{compiling:9.1f}"
        )
    print(
        f"share: of {rate / 1e9:.0f} GFLOP/s, the rate of a large product here. * measured on "
        f"{b.loop_pairs} pairs"
    )


def record(
    b: Benchmark,
    shape: dict[str, Any],
    clock: Clock,
    per_pair: dict[str, float],
    rate: float,
    agreement: Any,
    active: float,
) -> dict[str, Any]:
    """The record, as JSON."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "benchmark": "attribution",
        "schema_version": 1,
        "commit": done.stdout.strip() or "unknown",
        "time": time.strftime("%Y%m%d-%H%M%S"),
        "settings": {k: v for k, v in asdict(b).items() if k not in ("out", "bergson")},
        "shape": shape,
        "active_per_prompt": active,
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "peak_bytes": stats.get("peak_bytes_in_use"),
        },
        "versions": {name: version(name) for name in ("smda-jax", "jax", "torch", "transformers")},
        "measured_flop_per_second": rate,
        "agreement": agreement,
        "engines": clock.rows,
        "seconds_per_pair": per_pair,
    }


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
