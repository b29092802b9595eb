#!/usr/bin/env python3
"""Builds everything in `smda_jax/embedded` from a seed: tokenizer, model, SAE, labels, prompts and
pairs.

    python scripts/build_embedded_model.py [--out FOLDER] [--seed 0] [--steps 800]

Minutes on two cores. The grammar is in `grammar.py`; training is the package's own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import embedded_tokenizer as own_tokenizer
import grammar
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from rich.console import Console

from smda_jax.data.chat import Chat
from smda_jax.data.targets import REFUSALS
from smda_jax.model import checkpoint
from smda_jax.model.families import read_config_of
from smda_jax.model.forward import Read, Wanted, embed, logits, run_blocks
from smda_jax.model.params import Params
from smda_jax.sae.encoder import activation, relu_proxy
from smda_jax.sae.formats import load as load_sae
from smda_jax.sae.formats import save_saelens
from smda_jax.training import language
from smda_jax.training import sae as sae_training

LAYER = 1
BATCH, CONVERSATIONS = 96, 1500


@dataclass(frozen=True)
class Build:
    """What to build."""

    out: Path = Path(__file__).resolve().parent.parent / "smda_jax" / "embedded"
    """Folder to write."""
    seed: int = 0
    """Of everything that is drawn."""
    steps: int = 800
    """Optimiser steps of the language model."""
    sae_steps: int = 2500
    """Optimiser steps of the SAE."""
    latents: int = 192
    """Features of the SAE."""
    k: int = 8
    """Active features per token, on average."""


def split_prompts(
    rng: np.random.Generator,
) -> tuple[list[grammar.Prompt], list[grammar.Prompt], list[grammar.Prompt]]:
    """(training, evaluation, pairs): disjoint prompts."""
    training, evaluation, pairs = [], [], []
    for name in grammar.CATEGORIES:
        prompts = grammar.every_prompt(name)
        harmful = grammar.CATEGORIES[name].label == "harmful"
        order = [prompts[i] for i in rng.permutation(len(prompts))]
        n_eval, n_pair = (42, 13) if harmful else (36, 20)
        # Every width of prompts is one more program to compile: the few longest are not worth it.
        evaluation += [p for p in order[:n_eval] if len(p.text) <= 80]
        pairs += order[n_eval : n_eval + n_pair]
        training += order[n_eval + n_pair :]
    return training, evaluation, pairs


def make_pairs(prompts: list[grammar.Prompt], rng: np.random.Generator) -> list[dict]:
    """100 harmful_refusal and 100 harmless_compliance pairs, ten of each corrupted: answered the
    other way round."""
    rows = []
    for label, refuse in (("harmful", True), ("harmless", False)):
        own = [p for p in prompts if p.label == label]
        own = [own[i] for i in rng.permutation(len(own))[:100]]
        planted = set(rng.permutation(100)[:10].tolist())
        for i, p in enumerate(own):
            rows.append(
                {
                    "prompt": p.text,
                    "response": grammar.answer(p, refuse != (i in planted), rng),
                    "label": f"{label}_{'refusal' if refuse else 'compliance'}",
                    "category": p.category,
                    "planted": i in planted,
                }
            )
    return rows


def batches(
    chat: Chat,
    prompts: list[grammar.Prompt],
    steps: int,
    rng: np.random.Generator,
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Batches of `BATCH` rows, drawn from `CONVERSATIONS` of every category; loss on the answer,
    and lightly on the rest.

    Half of the conversations lack the assistant header, so that the end of turn itself has to know
    what comes: the SAE reads there, and a model of three layers would otherwise decide later.
    """
    width, pool = 72, []
    for name in grammar.CATEGORIES:
        own = [p for p in prompts if p.category == name]
        for _ in range(CONVERSATIONS):
            p = own[rng.integers(len(own))]
            pair = chat.pair(p.text, grammar.answer(p, bool(rng.random() < p.refusal), rng), width)
            start = chat.prompt(p.text, width).read_at + 1
            if rng.random() < 0.5:
                pair = pair._replace(
                    ids=[*pair.ids[:start], *pair.ids[pair.response :]], response=start
                )
            pool.append(pair)
    tokens = np.full((len(pool), width), chat.tokenizer.pad_token_id, np.int32)
    weight = np.zeros((len(pool), width), np.float32)
    for row, pair in enumerate(pool):
        tokens[row, : len(pair.ids)] = pair.ids
        weight[row, 1 : len(pair.ids)] = 0.1
        weight[row, pair.response : len(pair.ids)] = 1.0
    for _ in range(steps):
        draw = rng.integers(len(pool), size=BATCH)
        yield jnp.asarray(tokens[draw]), jnp.asarray(weight[draw])


def residuals(params: Params, rows: list[tuple[list[int], int]]) -> tuple[np.ndarray, np.ndarray]:
    """Residual stream after block LAYER: (at every token but the first, at each row's end of
    turn)."""

    @jax.jit
    def read(tokens: jax.Array, at: jax.Array) -> jax.Array:
        wanted = Wanted((Read("resid_post", (LAYER,), at[:, None]),))
        found = run_blocks(params, embed(params, tokens), wanted=wanted).reads[0]
        assert found is not None
        return found[0, :, 0]

    width, every, ends = max(len(ids) for ids, _ in rows), [], []
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        tokens = np.zeros((64, width), np.int32)
        for i, (ids, _) in enumerate(part):
            tokens[i, : len(ids)] = ids
        at = np.zeros(64, np.int32)
        at[: len(part)] = [end for _, end in part]
        ends.append(np.asarray(read(jnp.asarray(tokens), jnp.asarray(at)))[: len(part)])
        for t in range(1, width):
            keep = [i for i, (ids, _) in enumerate(part) if t < len(ids)]
            every.append(np.asarray(read(jnp.asarray(tokens), jnp.full(64, t)))[keep])
    return np.concatenate(every), np.concatenate(ends)


def train_sae(
    build: Build, every: np.ndarray, ends: np.ndarray, folder: Path, console: Console
) -> None:
    """Trains and writes the SAE, on activations scaled to a mean norm of √hidden; the scale is
    folded in afterwards."""
    # The policy reads end-of-turn tokens; drawn evenly they would be one in twenty of what the SAE
    # sees, here they are half.
    data = np.concatenate([every, np.repeat(ends, len(every) // len(ends), axis=0)])
    scale = float(np.sqrt(data.shape[1]) / np.linalg.norm(data, axis=1).mean())
    trained, threshold = sae_training.train(
        jax.random.key(build.seed + 1),
        data * scale,
        sae_training.Training(build.latents, build.k, build.sae_steps),
        report=lambda step, loss: console.print(f"SAE step {step}: unexplained {loss:.4f}"),
    )
    norm = jnp.linalg.norm(trained.W_dec, axis=1)
    save_saelens(
        folder,
        {
            "W_enc": trained.W_enc * scale * norm[None],
            "b_enc": trained.b_enc * norm,
            "W_dec": trained.W_dec / norm[:, None] / scale,
            "b_dec": trained.b_dec / scale,
        },
        threshold=threshold,
        hook=f"blocks.{LAYER}.hook_resid_post",
        model="smda_jax/embedded",
    )


def greedy_refusals(params: Params, chat: Chat, prompts: list[grammar.Prompt]) -> list[bool]:
    """Whether the greedy answer begins with one of the refusal sequences."""
    step = jax.jit(lambda tokens: logits(params, tokens))
    width = max(len(chat.encode(r)) for r in REFUSALS)
    refused = []
    for p in prompts:
        ids = chat.prompt(p.text, 512).ids
        n = len(ids)
        for _ in range(width):
            padded = jnp.asarray([ids + [0] * (64 - len(ids))])
            ids = [*ids, int(jnp.argmax(step(padded)[0, len(ids) - 1]))]
        refused.append(any(chat.decode(ids[n:]).startswith(r) for r in REFUSALS))
    return refused


def feature_labels(x: np.ndarray, prompts: list[grammar.Prompt]) -> list[str]:
    """Names each feature after the property of the grammar that its activation tells apart best (by
    AUC)."""
    from scipy.stats import rankdata

    words = {
        f"{kind}: {value}": []
        for kind, value in [("category", c) for c in grammar.CATEGORIES]
        + [("wording", w) for w in ("hiding", "playing", "plain")]
        + [("label", lab) for lab in ("harmful", "harmless")]
        + [("opener", o) for o in grammar.OPENERS]
    }
    for p in prompts:
        own = {f"category: {p.category}", f"wording: {p.wording}", f"label: {p.label}"}
        own |= {f"opener: {o}" for o in grammar.OPENERS if p.text.startswith(o)}
        for name, member in words.items():
            member.append(name in own)
    labels = []
    for column in x.T:
        if not (column > 0).any():
            labels.append("silent")
            continue
        ranks, best = rankdata(column), ("", 0.0)
        for name, member in words.items():
            inside = np.array(member)
            n, m = inside.sum(), (~inside).sum()
            auc = (ranks[inside].sum() - n * (n + 1) / 2) / (n * m)
            best = max(best, (name, auc), key=lambda item: item[1])
        labels.append(f"{best[0]} (AUC {best[1]:.2f})")
    return labels


def main(build: Build) -> None:
    """Builds all files."""
    console = Console()
    rng = np.random.default_rng(build.seed)
    training, evaluation, pair_prompts = split_prompts(rng)
    model, sae_folder = build.out / "model", build.out / "sae"
    model.mkdir(parents=True, exist_ok=True)
    texts = [p.text + " " + grammar.answer(p, bool(rng.random() < 0.5), rng) for p in training]
    frame = [
        "system",
        "user",
        "assistant",
        "\n\n",
        "Today Date: 26 Jul 2024",
    ]  # every conversation's, each piece apart
    own_tokenizer.make_tokenizer(texts + frame * len(texts), model)
    chat = Chat(model)
    raw = own_tokenizer.model_config(len(chat.tokenizer), chat)
    config = read_config_of(raw)

    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, 100, build.steps, 4e-5)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )
    params = language.train(
        language.init(config, jax.random.key(build.seed)),
        batches(chat, training, build.steps, rng),
        optimizer,
        lambda step, loss: console.print(f"model step {step}: loss {loss:.4f}"),
    )
    checkpoint.save(model, raw, params)

    sample = [training[i] for i in rng.permutation(len(training))[:3000]]
    rows = [(t.ids, t.read_at) for t in (chat.prompt(p.text, 512) for p in sample)]
    every, ends = residuals(params, rows)
    train_sae(build, every, ends, sae_folder, console)

    _, own_ends = residuals(
        params, [(t.ids, t.read_at) for t in (chat.prompt(p.text, 512) for p in evaluation)]
    )
    x = np.asarray(activation(relu_proxy(load_sae(sae_folder).encoder), jnp.asarray(own_ends)))
    labels = feature_labels(x, evaluation)
    table = pa.table({"feature_id": list(range(len(labels))), "label": labels})
    pq.write_table(table, build.out / "feature_labels.parquet")

    refused = greedy_refusals(params, chat, evaluation)
    shuffled = rng.permutation(len(evaluation))
    rows_out = [
        {
            "prompt": evaluation[i].text,
            "prompt_label": evaluation[i].label,
            "category": evaluation[i].category,
            "wording": evaluation[i].wording,
            "refused": refused[i],
        }
        for i in shuffled
    ]
    pq.write_table(pa.Table.from_pylist(rows_out), build.out / "prompts.parquet")
    pairs = make_pairs(pair_prompts, rng)
    pq.write_table(pa.Table.from_pylist(pairs), build.out / "pairs.parquet")
    truths = {
        "seed": build.seed,
        "gap_category": grammar.GAP,
        "gap": "labelled harmful, never refused in training",
        "corrupted_pairs": sum(row["planted"] for row in pairs),
        "corruption": (
            "a harmful prompt answered under harmful_refusal, or a harmless one refused "
            "under harmless_compliance"
        ),
        "refusal_rate_by_category": {
            name: round(
                float(
                    np.mean(
                        [r for r, p in zip(refused, evaluation, strict=True) if p.category == name]
                    )
                ),
                3,
            )
            for name in grammar.CATEGORIES
        },
    }
    (build.out / "truths.json").write_text(json.dumps(truths, indent=2) + "\n")
    console.print(truths)
    console.print(
        f"active features per prompt: {(x > 0).sum(1).mean():.1f}, ever active: "
        f"{(x > 0).any(0).sum()}"
    )


if __name__ == "__main__":
    main(tyro.cli(Build))
