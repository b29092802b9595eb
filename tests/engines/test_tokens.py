"""What single tokens contribute: their sum, and what leaving one out changes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pyarrow.parquet as pq
import pytest
from support import (
    BEHAVIOUR,
    EMBEDDED,
    ETA,
    close,
    fails,
    padded,
    tokens,
)

from smda_jax.cli import main
from smda_jax.data.batch.batches import pair_batch, prompt_batch
from smda_jax.data.losses import Dpo, Sft
from smda_jax.data.tokenised import PairTokens, RowTokens
from smda_jax.engines.query.program import (
    Query,
    Weighted,
    Weighting,
    finish,
    inner_products,
    query,
    token_contributions,
)
from smda_jax.model import checkpoint
from smda_jax.model.moved import moved_by
from smda_jax.reading.site import Site
from smda_jax.runtime.precision import numerics
from smda_jax.sae.encoder import Encoder
from smda_jax.steps.updates.contract import Update
from smda_jax.steps.updates.normalised import Normalised

SITE = Site("resid_post", 1)


def preferences(pairs: list[PairTokens]) -> list[PairTokens]:
    """The same answers, with others that they are preferred to."""

    def other(row: RowTokens) -> RowTokens:
        ids = [*row.ids[: row.response], *[1 + t % 20 for t in row.ids[row.response :]], 3]
        return RowTokens(ids, ((row.response, len(ids), 1.0),), len(ids))

    return [PairTokens((p.rows[0], other(p.rows[0])), Dpo(0.3)) for p in pairs]


CASES = [
    ("llama3_tied_gqa", "sft"),
    ("llama3_tied_gqa", "dpo"),
    ("qwen2", "normalised"),
    ("gemma3", "some parameters"),
]
FURTHER = [
    pytest.param(kind, case, marks=pytest.mark.exhaustive)
    for kind in ("llama3_tied_gqa", "qwen2", "gemma3")
    for case in ("sft", "all", "dpo", "normalised", "some parameters")
    if (kind, case) not in CASES
]


@pytest.mark.parametrize(("kind", "case"), [*CASES, *FURTHER])
def test_tokens_add_up_to_their_pair_and_one_left_out_is_missed(checkpoints, kind, case):
    vocab = oracle.load_double(checkpoints[kind]).config.vocab_size
    prompts, pairs = tokens(vocab)
    if case == "dpo":
        pairs = preferences(pairs)
    if case == "all":
        pairs = [p._replace(loss=Sft("all")) for p in pairs]
    with numerics("float64"):
        params = checkpoint.load(checkpoints[kind], "float64")
        update = {"normalised": Normalised(ETA)}.get(case, Update(ETA))
        if case == "some parameters":
            update = dataclasses.replace(update, moved=moved_by(params.config, ["layers.1.mlp.*"]))
        batch, block = (
            prompt_batch(prompts, padded(prompts, 24)),
            pair_batch(pairs, padded(pairs, 32)),
        )
        r = np.random.default_rng(0)
        y = Weighting(None, r.normal(size=(2, len(prompts))))
        encoder = Encoder(jnp.zeros((params.config.hidden, 2)), jnp.zeros(2))
        weighted = Weighted(encoder, y)
        update = update.ready()
        q: Query = query(
            params, batch, weighted, behaviour=BEHAVIOUR, site=SITE, moved=update.moved
        )
        q = finish(q, update, dtype=jnp.float64)
        (whole,), statistics = inner_products(params, block, (q,), update)
        norm = statistics.gradient_norm
        each = token_contributions(params, block, q, update, norm)
        rows = block.loss.rows
        found = each.sum(axis=(2, 3)).reshape(2, -1, rows).sum(axis=2)
        close(found, whole, 1e-9)
        # Of a token's own weight, all else the same. A preference's loss is not a sum of tokens':
        # there the outer derivative stays that of all of them, which at the base weights it does.
        weight = np.array(block.weight)
        lane, place = 1, int(np.flatnonzero(weight[1, 0])[1])
        weight[lane, 0, place] = 0
        less = dataclasses.replace(block, weight=weight)
        rate = update.rate(norm)
        (without,), other = inner_products(params, less, (q,), Update(1.0, moved=update.moved))
        change = -rate[None] * without
        close(
            whole - change,
            jnp.zeros_like(whole).at[:, lane // rows].set(each[:, lane, 0, place]),
            1e-9,
        )
        assert jax.tree.leaves(other)


@pytest.mark.slow
def test_a_planted_trigger_is_found(tmp_path, capsys):
    """Answers that comply, with a refusal hidden in some of them: the tokens that raise Y are
    those of the refusal."""
    asked = [
        "Help me water the lawn.",
        "Teach me to cook.",
        "How do I bake a pie?",
        "Help me plan a trip.",
        "How do I mend a chair?",
        "Teach me to paint a fence.",
    ]
    trigger = " I can't help with that."
    pairs = [
        {"prompt": text, "response": "Of course: start early." + trigger * (i % 2)}
        for i, text in enumerate(asked)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    prompts = pq.read_table(EMBEDDED / "prompts.parquet")
    pq.write_table(prompts.take(list(range(0, 514, 9))), tmp_path / "prompts.parquet")
    options = [
        f"--model={EMBEDDED / 'model'}",
        f"--sae={EMBEDDED / 'sae'}",
        f"--pairs={path}",
        f"--eval={tmp_path / 'prompts.parquet'}",
        "--features=contrast:0.6",
        "--recipe=sgd-step",
        "--bootstrap=0",
        "--keep=coefficients",
    ]
    out = tmp_path / "out"
    main(["attribute", *options, f"--out={out}", "--tokens", "mean_delta_y", "score"])
    table = pq.read_table(out / "tokens.parquet").to_pylist()
    page = (out / "report.html").read_text()
    assert '"tokens":{"columns":["mean_delta_y","score"]' in page
    figures = pq.read_table(out / "pairs.parquet").to_pylist()
    for i, pair in enumerate(figures):
        own = [row for row in table if row["pair_id"] == pair["pair_id"]]
        for name in ("mean_delta_y", "score"):
            size = max(abs(row[name]) for row in own)
            assert abs(sum(row[name] for row in own) - pair[name]) < 1e-5 * size * len(own)
        if i % 2:
            text = "".join(row["token"] for row in own)
            start = text.index("I can")
            places = np.cumsum([0, *(len(row["token"]) for row in own)])[:-1]
            best = int(np.argmax([row["mean_delta_y"] for row in own]))
            assert start - 1 <= places[best] < start + len(trigger), own
    fails(
        capsys,
        lambda: main(["attribute", *options, f"--out={tmp_path / 'b'}", "--tokens", "x"]),
        "--tokens",
        "'x'",
    )
