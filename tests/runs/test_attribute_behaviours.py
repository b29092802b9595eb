"""Behaviours through the command: what Y is, what moves it, and what tables and page say of it."""

import importlib
import json
import linecache
import shutil
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from safetensors.numpy import save_file
from support import (
    PAIRS,
    PROMPTS,
    close,
    fails,
    json_of,
    price_of,
    run,
    table,
)

from smda_jax.cli import main
from smda_jax.data.chat import Chat
from smda_jax.report.data import read_run
from smda_jax.report.findings import findings

FLOAT64 = ("--dtype=float64", "--bootstrap=20")


def said(out: Path) -> str:
    return " ".join(findings(read_run(out)))


def page(out: Path) -> str:
    main(["report", str(out)])
    return (out / "report.html").read_text()


@pytest.fixture
def with_columns(files, tmp_path):
    """The tiny files with columns for behaviours to read, and labels of their own."""
    rows = [
        {
            "prompt": text,
            "prompt_label": ("polite", "curt", "odd")[i % 3],
            "good": "Of course: start early.",
            "bad": f"No{' no' * (i % 3)}.",
            "judged": i / 4 - 0.5,
        }
        for i, (text, _) in enumerate(PROMPTS)
    ]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [
        {"prompt": p, "response": r, "label": ("polite", "curt", "odd")[i % 3]}
        for i, (p, r, _) in enumerate(PAIRS)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return files | {"eval": tmp_path / "eval.jsonl", "pairs": tmp_path / "pairs.jsonl"}


def test_a_completion_of_every_prompt(with_columns, tmp_path):
    options = ("--behaviour=completion", "--column=good", "--less=bad", "--per-token")
    out = run(with_columns, tmp_path / "run", *FLOAT64, *options, "--raises", "polite", "odd")
    model, chat = oracle.load_double(with_columns["model"]), Chat(with_columns["model"])
    rows = [json.loads(line) for line in with_columns["eval"].read_text().split("\n")]

    def of(row: dict[str, str], name: str) -> torch.Tensor:
        ids = chat.prompt(row["prompt"], 512).ids
        whole = chat.pair(row["prompt"], row[name], 512).ids
        answer = whole[len(ids) : -1]  # without its end of turn
        assert chat.decode(answer) == row[name]
        return oracle.log_probability(model, ids, answer) / len(answer)

    Y = [of(row, "good") - of(row, "bad") for row in rows]
    prompts, pairs = table(out, "prompts.parquet"), table(out, "pairs.parquet")
    close(prompts["y"], [y.item() for y in Y], 1e-9)
    assert (prompts["shows"] == (prompts["y"] > 0)).all()
    want = []
    for prompt, response, _ in PAIRS:
        pair = chat.pair(prompt, response, 512)
        g = oracle.gradient(model, pair.ids, pair.response)[1]
        Y = [of(row, "good") - of(row, "bad") for row in rows]
        want.append(-1e-4 * np.mean([oracle.along(model, y, g) for y in Y]))
    close(pairs["mean_delta_y"], want, 1e-6)
    assert pairs["raises"].tolist() == [True, False, True, True, False]
    low = np.median(pairs["mean_delta_y"][~pairs["raises"].astype(bool)])
    first = pairs["flagged_delta_y"].astype(bool)[pairs["raises"].astype(bool)]
    assert first.tolist() == (pairs["mean_delta_y"][pairs["raises"].astype(bool)] < low).tolist()
    text = said(out)
    assert "Higher Y (nats per token): the answer is the prompt's “good” rather than its" in text
    assert "odd and polite to raise it, by --raises" in text
    assert "refus" not in text
    assert "the answer is the prompt" in page(out)
    behaviour = json_of(out / "run.json")["behaviour"]
    assert (behaviour["name"], behaviour["column"], behaviour["less"]) == (
        "completion",
        "good",
        "bad",
    )


@pytest.mark.exhaustive
def test_a_number_of_the_data_moves_the_policy_through_activations_alone(with_columns, tmp_path):
    options = ("--behaviour=column", "--column=judged", "--features=contrast:0.01")
    found = []
    for engine in ("reverse", "forward", "query"):
        out = run(with_columns, tmp_path / engine, *FLOAT64, *options, f"--engine={engine}")
        influence, pairs = table(out, "influence.parquet"), table(out, "pairs.parquet")
        assert not influence["delta_w_y"].any()
        assert influence["delta_w_x"].any()
        assert all(x is None for x in pairs["mean_delta_y"])
        assert all(x is None for x in pairs["flagged_delta_y"])
        close(table(out, "prompts.parquet")["y"], np.arange(7) / 4 - 0.5, 1e-12)
        found.append(influence["delta_w_x"])
        close(found[-1], found[0], 1e-9)
    text = said(out)
    assert "Y is judged, as the data give it: a step does not move it" in text
    assert "not said which are expected to raise" in text
    # Of three labels each is held against the rest.
    rows = [json.loads(line) for line in with_columns["eval"].read_text().split("\n")]
    labels, policy = np.array([r["prompt_label"] for r in rows]), json_of(out / "policy.json")
    from safetensors.numpy import load_file

    t = load_file(with_columns["sae"] / "sae_weights.safetensors")
    model, chat = oracle.load_double(with_columns["model"]), Chat(with_columns["model"])
    places = [chat.prompt(r["prompt"], 512) for r in rows]
    h = [
        oracle.streams(model, p.ids)[0]["resid_post", 1][p.read_at].detach().numpy() for p in places
    ]
    X = np.maximum(np.stack(h) @ t["W_enc"].astype(float) + t["b_enc"], 0)
    kinds = dict.fromkeys(labels)
    apart = [np.abs(X[labels == k].mean(0) - X[labels != k].mean(0)) for k in kinds]
    assert policy["feature_ids"] == np.flatnonzero(np.max(apart, axis=0) > 0.01).tolist()


def test_a_probe_costs_no_unembedding_and_its_flags_come_from_the_data(with_columns, tmp_path):
    d = np.random.default_rng(0).normal(size=24)
    save_file({"weight": d[None], "bias": np.array([0.25])}, tmp_path / "probe.safetensors")
    rows = [json.loads(line) for line in with_columns["pairs"].read_text().split("\n")]
    rows = [row | {"raises": i % 2 == 0} for i, row in enumerate(rows)]
    with_columns["pairs"].write_text("\n".join(map(json.dumps, rows)))
    options = ("--behaviour=probe", f"--direction={tmp_path / 'probe.safetensors'}")
    spot = ("--direction-layer=0", "--direction-site=mlp_out", "--direction-token=last")
    model, chat = oracle.load_double(with_columns["model"]), Chat(with_columns["model"])
    ids = [chat.prompt(p, 512).ids for p, _ in PROMPTS]

    def values() -> list[torch.Tensor]:
        both = (oracle.streams(model, one)[0]["mlp_out", 0][-1] for one in ids)
        return [h @ torch.tensor(d) + 0.25 for h in both]

    for engine in ("reverse", "query"):
        out = run(with_columns, tmp_path / engine, *FLOAT64, *options, *spot, f"--engine={engine}")
        close(table(out, "prompts.parquet")["y"], [y.item() for y in values()], 1e-9)
        pairs = table(out, "pairs.parquet")
        for i, (prompt, response, _) in enumerate(PAIRS):
            pair = chat.pair(prompt, response, 512)
            g = oracle.gradient(model, pair.ids, pair.response)[1]
            want = np.mean([oracle.along(model, y, g) for y in values()])
            assert pairs["mean_delta_y"][i] == pytest.approx(-1e-4 * want, rel=1e-6)
        assert pairs["raises"].tolist() == [True, False, True, False, True]
    alone = run(
        with_columns,
        tmp_path / "score",
        *FLOAT64,
        *options,
        *spot,
        "--engine=query",
        "--keep=score",
    )
    close(table(alone, "pairs.parquet")["score"], pairs["score"], 1e-9)
    assert "mlp_out of layer 0" in said(out)
    assert "the column raises" in said(out)
    main(["verify", str(tmp_path / "reverse"), "--pairs=3", "--learning-rates", "1e-5"])
    assert "First order holds for the score up to" in said(tmp_path / "reverse")
    own = {k: str(v) for k, v in with_columns.items()} | {"features": "3,8", "out": tmp_path}
    direction = str(tmp_path / "probe.safetensors")
    probe = price_of(**own, behaviour="probe", direction=direction, direction_layer=0)
    assert probe["reverse"] < price_of(**own)["reverse"]


def test_a_contrast_and_what_the_responses_begin_with(files, tmp_path):
    """With targets that compliant answers begin with, refusals are what should lower Y."""
    both = ("--behaviour=contrast", "--targets", "Sure", "Of course", "--against", "I can")
    out = run(files, tmp_path / "run", *FLOAT64, *both)
    model, chat = oracle.load_double(files["model"]), Chat(files["model"])
    ids = [chat.prompt(p, 512).ids for p, _ in PROMPTS]
    first, second = [[chat.encode(q) for q in some] for some in (("Sure", "Of course"), ("I can",))]

    def log_sum(one: list[int], sequences: list[list[int]]) -> float:
        found = [oracle.log_probability(model, one, q).item() for q in sequences]
        return float(np.logaddexp.reduce(found))

    want = [log_sum(one, first) - log_sum(one, second) for one in ids]
    close(table(out, "prompts.parquet")["y"], want, 1e-9)
    pairs = table(out, "pairs.parquet")
    # Of answers that begin with neither nothing is expected.
    assert pairs["raises"].tolist() == [False, True, False, True, None]
    record = json_of(out / "run.json")["polarity"]
    assert record["source"] == "what the responses begin with"
    assert "rather than “I can” (log-odds)" in said(out)
    # The same labels with the paper's targets: refusals raise it.
    usual = run(files, tmp_path / "usual", *FLOAT64)
    assert table(usual, "pairs.parquet")["raises"].tolist() == [True, False, True, False, False]


def test_a_behaviour_of_ones_own_by_its_name(files, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import jax, smda_jax as smda\n"
        "def certain(seen):\n"
        "    return jax.nn.log_softmax(seen.logits[:, 0]).max(-1)\n"
        "behaviour = smda.Function(certain, 'nats', 'the first token is certain')\n"
        "other = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = run(files, tmp_path / "run", *FLOAT64, "--behaviour=mine:behaviour")
    model, chat = oracle.load_double(files["model"]), Chat(files["model"])
    ids = [chat.prompt(p, 512).ids for p, _ in PROMPTS]
    want = [oracle.streams(model, one)[1][-1].log_softmax(-1).max().item() for one in ids]
    close(table(out, "prompts.parquet")["y"], want, 1e-9)
    assert "the first token is certain" in said(out)
    for name, words in {
        "mine:other": "mine:other is a int",
        "mine:no": "cannot be imported",
        "nope:x": "nope",
    }.items():
        capsys.readouterr()
        fails(capsys, lambda name=name: run(files, tmp_path / "no", f"--behaviour={name}"), words)
    # Another function is another behaviour: what was begun is not continued by it.
    sys.modules.pop("mine")
    before = json_of(out / "run.json")["fingerprint"]
    text = (tmp_path / "mine.py").read_text().replace("max(-1)", "min(-1)")
    (tmp_path / "mine.py").write_text(text)
    linecache.clearcache()
    importlib.invalidate_caches()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    capsys.readouterr()
    fails(capsys, lambda: run(files, out, *FLOAT64, "--behaviour=mine:behaviour"), "another")
    assert json_of(out / "run.json")["fingerprint"] == before
    sys.modules.pop("mine")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--behaviour=contrast", "--targets", "Yes"), ["--behaviour contrast", "--against No"]),
        (("--behaviour=probe",), ["needs a direction"]),
        (("--behaviour=probe", "--direction=wide.npy"), ["is 23 wide", "24"]),
        (("--behaviour=probe", "--direction=two.npy"), ["shape [2, 24]"]),
        (("--behaviour=probe", "--direction=zero.npy"), ["the direction is zero"]),
        (("--behaviour=probe", "--direction=good.npy", "--direction-layer=9"), ["out of range"]),
        (("--behaviour=probe", "--direction=good.npy", "--direction-site=z"), ["one of resid_pre"]),
        (("--behaviour=probe", "--direction=cut.npy"), ["cannot be read"]),
        (("--behaviour=probe", "--direction=none.npy"), ["no such file"]),
        (("--behaviour=completion", "--column=answer"), ["has no column 'answer'"]),
        (("--behaviour=completion", "--column=gap"), ["row 3", "gap is None"]),
        (("--behaviour=column", "--column=good"), ["row 1", "a finite number in every row"]),
        (("--behaviour=column", "--targets", "Yes"), ["--targets", "says nothing to column"]),
        (("--column=good",), ["--column", "says nothing to begins"]),
        (("--raises", "rude"), ["no pair is labelled rude", "polite, curt, odd"]),
        (("--behaviour=begin",), ["begin is not known", "completion"]),
        (("--subset", "label:rude"), ["label:rude is empty"]),
    ],
)
def test_behaviours_that_no_run_can_use(
    with_columns, tmp_path, monkeypatch, capsys, options, words
):
    monkeypatch.chdir(tmp_path)
    good = np.random.default_rng(0).normal(size=24)
    directions = {"good": good, "wide": good[:23], "two": np.stack([good] * 2), "zero": good * 0}
    for name, values in directions.items():
        np.save(f"{name}.npy", values)
    Path("cut.npy").write_bytes(Path("good.npy").read_bytes()[:90])
    rows = [json.loads(line) for line in with_columns["eval"].read_text().split("\n")]
    rows = [row | {"gap": None if i == 2 else "x"} for i, row in enumerate(rows)]
    with_columns["eval"].write_text("\n".join(map(json.dumps, rows)))
    fails(capsys, lambda: run(with_columns, tmp_path / "run", *options), *words)
    assert not (tmp_path / "run").exists()
