"""`smda-jax finetune`: what it writes, and what it refuses."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from support import EMBEDDED, PAIRS, close, fails

from smda_jax.cli import main
from smda_jax.data.records import digest
from smda_jax.model import checkpoint
from smda_jax.model.forward import logits
from smda_jax.reading.network import load_model

FAST = ("--learning-rate=1e-3", "--epochs=4", "--batch=2")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pairs."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": p, "response": r, "label": label} for p, r, label in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def finetune(pairs: Path, out: Path, *more: str) -> Path:
    main(["finetune", f"--model={EMBEDDED / 'model'}", f"--pairs={pairs}", f"--out={out}", *more])
    return out


def torch_logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits.numpy()


def test_transformers_loads_what_is_written(pairs: Path, tmp_path: Path) -> None:
    out = finetune(pairs, tmp_path / "out", *FAST, "--checkpoints=2")
    model = load_model(out)
    tokens = model.chat.prompt("Help me water the lawn.", 99, "here").ids
    theirs = oracle.AutoModelForCausalLM.from_pretrained(out)
    own = logits(model.params, jnp.array([tokens]))
    close(own, torch_logits(theirs, tokens), 1e-5)
    base = load_model(EMBEDDED / "model")
    assert np.abs(np.asarray(own - logits(base.params, jnp.array([tokens])))).max() > 1e-3
    record = json.loads((out / "finetune.json").read_text())
    assert record["pair_ids"] == [digest(p, r) for p, r, _ in PAIRS]
    assert record["recipe"]["learning_rate"] == 1e-3
    assert (record["recipe"]["loss_scope"], record["steps"]) == ("all", 12)
    losses = pq.read_table(out / "training.parquet")["loss"].to_numpy()
    assert len(losses) == 12
    assert losses[-3:].mean() < losses[:3].mean()
    for step in (4, 8):
        assert load_model(out / "checkpoints" / f"step-{step:06d}").config == base.config
    moments = checkpoint.load(out / "second_moments")
    assert all((np.asarray(leaf) >= 0).all() for leaf in jax.tree.leaves(moments))
    assert not (out / "state").exists()


@pytest.mark.parametrize(
    "more", [("--lora-rank=3",), ("--lora-rank=2", "--lora-modules=down_proj")]
)
def test_peft_loads_an_adapter(pairs: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    out = finetune(pairs, tmp_path / "out", *FAST, *more)
    theirs = oracle.load_adapted(EMBEDDED / "model", out)
    model = load_model(EMBEDDED / "model", adapter=out)
    tokens = model.chat.prompt("Help me water the lawn.", 99, "here").ids
    close(logits(model.params, jnp.array([tokens])), torch_logits(theirs, tokens), 1e-5)
    tensors = load_file(out / "adapter_model.safetensors")
    assert all(np.abs(v).max() > 0 for k, v in tensors.items() if ".lora_B." in k)
    again = finetune(pairs, tmp_path / "again", *FAST, f"--adapter={out}")
    changed = load_file(again / "adapter_model.safetensors")
    assert changed.keys() == tensors.keys()
    assert any((changed[k] != v).any() for k, v in tensors.items())


def test_weights_of_zero_alone_are_refused(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [digest(p, r) for p, r, _ in PAIRS]
    weights = tmp_path / "weights.csv"
    rows = [f"{pair},0" for pair in ids]
    weights.write_text("\n".join(["pair_id,weight", *rows]))
    call = lambda: finetune(pairs, tmp_path / "out", *FAST, f"--weights={weights}")  # noqa: E731
    fails(capsys, call, "weights.csv", "nothing would be trained")


def test_halves_give_the_mean_of_their_runs(pairs: Path, tmp_path: Path) -> None:
    out = finetune(pairs, tmp_path / "out", *FAST, "--halves=3")
    halves = json.loads((out / "finetune.json").read_text())["halves"]
    assert [len(half) for half in halves] == [2, 2, 2]
    finetune(pairs, tmp_path / "out", *FAST, "--halves=3")  # finished: nothing is trained anew
    assert load_model(out).config == load_model(EMBEDDED / "model").config


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_end(pairs: Path, tmp_path: Path) -> None:
    whole = finetune(pairs, tmp_path / "whole", *FAST)
    options = [f"--model={EMBEDDED / 'model'}", f"--pairs={pairs}", *FAST, "--save-every=1"]
    words = [sys.executable, "-m", "smda_jax", "finetune", *options, f"--out={tmp_path / 'out'}"]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "out" / "state").glob("step-*2")) and running.poll() is None:
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    out = finetune(pairs, tmp_path / "out", *FAST, "--save-every=1")
    own, want = (load_file(f / "model.safetensors") for f in (out, whole))
    for name, value in want.items():
        close(own[name], value, 1e-5)
    one, other = (pq.read_table(f / "training.parquet")["loss"].to_numpy() for f in (out, whole))
    close(one, other, 1e-5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--optimiser=nothing",), ("--optimiser", "nothing", "adamw")),
        (("--epochs=0",), ("--epochs", "below 1")),
        (("--lora-rank=2", "--lora-modules=x_proj"), ("--lora-modules", "x_proj", "q_proj")),
        (("--lora-rank=2", "--parameters=all"), ("--parameters", "adapter")),
        (("--halves=2", "--checkpoints=1"), ("--checkpoints", "--halves")),
        (("--loss=dpo",), ("rejected",)),
        (("--learning-rate=1e30",), ("step", "not finite", "--learning-rate")),
    ],
)
def test_bad_input_is_one_line(
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    fails(capsys, lambda: finetune(pairs, tmp_path / "out", *more), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pair_id,weight\nabc,1", ("abc", "no pair_id")),
        ("pair,weight\nabc,1", ("no column pair_id",)),
        ("pair_id,weight\n{id},-1", ("the weight '-1'",)),
        ("pair_id,weight\n{id},1\n{id},2", ("row 2", "already")),
    ],
)
def test_bad_weights_are_one_line(
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    words: tuple[str, ...],
) -> None:
    weights = tmp_path / "weights.csv"
    weights.write_text(text.format(id=digest(*PAIRS[0][:2])))
    call = lambda: finetune(pairs, tmp_path / "out", f"--weights={weights}")  # noqa: E731
    fails(capsys, call, *words)


def test_a_finished_run_is_not_trained_again(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(pairs, tmp_path / "out", *FAST)
    capsys.readouterr()
    finetune(pairs, tmp_path / "out", *FAST)
    assert "nothing is trained anew" in capsys.readouterr().out
    other = lambda: finetune(pairs, tmp_path / "out", *FAST, "--seed=1")  # noqa: E731
    fails(capsys, other, "another configuration", "seed")
