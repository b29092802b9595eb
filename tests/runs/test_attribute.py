"""The command `attribute`, through its public door, against the oracle."""

import json

import numpy as np
import oracle
import pyarrow.parquet as pq
import pytest
from support import (
    EMBEDDED,
    IDS,
    PAIRS,
    PROMPTS,
    close,
    expected,
    run,
    table,
    weights_of,
)

from smda_jax.cli import main
from smda_jax.data.chat import Chat
from smda_jax.runs.folder.store import RunFolder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance", "encoder", "gate", "engine"),
    [
        ("float64", 1e-6, "relu_proxy", "on", "auto"),
        ("float32", 1e-4, "relu_proxy", "on", "forward"),
        pytest.param("float64", 1e-6, "native", "off", "reverse", marks=pytest.mark.exhaustive),
        ("float64", 1e-6, "native", "on", "query"),
    ],
)
def test_the_whole_pipeline_equals_the_oracle(
    files, tmp_path, dtype, tolerance, encoder, gate, engine
):
    more = (f"--dtype={dtype}", f"--encoder={encoder}", f"--gate={gate}", f"--engine={engine}")
    out = run(files, tmp_path / "run", *more)
    want = expected(files, encoder=encoder, gate=gate)
    influence = table(out, "influence.parquet")
    shape = (len(PAIRS), len(IDS))
    assert influence["feature_id"].reshape(shape)[2].tolist() == IDS
    close(influence["delta_w_x"].reshape(shape), want["x"], tolerance)
    close(influence["delta_w_y"].reshape(shape), want["y"], tolerance)
    close(influence["delta_w"].reshape(shape), want["x"] + want["y"], tolerance)
    pairs = table(out, "pairs.parquet")
    close(pairs["score"], ((want["x"] + want["y"]) * want["W"]).sum(1), tolerance)
    close(pairs["mean_delta_y"], want["dy"].mean(1), tolerance)
    close(pairs["gradient_norm"], want["norm"], tolerance)
    close(pairs["loss"], want["loss"], tolerance)
    assert pairs["label"].tolist() == [lab for _, _, lab in PAIRS]
    prompts = table(out, "prompts.parquet")
    close(prompts["y"], want["Y"], tolerance)
    policy = json.loads((out / "policy.json").read_text())
    close(weights_of(out), want["W"], tolerance)
    assert (policy["schema_version"], policy["alpha"]) == (1, 5.0)
    assert policy["feature_ids"] == sorted(IDS)
    close(prompts["prediction"], want["X"] @ want["W"], tolerance)


def test_scores_alone_of_several_policies_equal_those_of_the_changes_in_full(files, tmp_path):
    subset = ("--subset", "natural", "random:4:1")
    full = run(files, tmp_path / "full", "--dtype=float64", "--engine=reverse", *subset)
    alone = run(
        files,
        tmp_path / "alone",
        "--dtype=float64",
        "--keep=score",
        "--engine=query",
        "--check-pairs=2",
        *subset,
    )
    for name in ("all", "natural", "random:4:1"):
        want, got = table(full, "scores.parquet", name), table(alone, "scores.parquet", name)
        assert got["pair_id"].tolist() == want["pair_id"].tolist()
        close(got["score"], want["score"], 1e-9)
    assert not (alone / "influence.parquet").exists()
    assert pq.read_table(alone / "pairs.parquet")["mean_delta_y"].null_count == len(PAIRS)
    assert (
        json.loads((alone / "run.json").read_text())["summary"]["first_order"]["r2_score"] > 0.999
    )


def test_residual_streams_are_kept_of_the_layers_asked_for(files, tmp_path):
    out = run(files, tmp_path / "run", "--dtype=float64", "--keep=residual", "--layers", "2", "0")
    block = RunFolder(
        out, json.loads((out / "run.json").read_text())["fingerprint"], {"config": {}}
    ).load("pairs-000000-0000")
    assert block["delta_h"].shape == (2, 3, len(PROMPTS), 24)  # layers 1 (the SAE's), 2 and 0
    again = run(files, tmp_path / "again", "--dtype=float64", "--layer=2", "--keep=residual")
    other = RunFolder(
        again, json.loads((again / "run.json").read_text())["fingerprint"], {"config": {}}
    )
    np.testing.assert_allclose(
        other.load("pairs-000000-0000")["delta_h"][:, 0],
        block["delta_h"][:, 1],
        rtol=1e-9,
        atol=1e-15,
    )


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "update",
    ["adam", *(pytest.param(u, marks=pytest.mark.exhaustive) for u in ("normalised", "ekfac"))],
)
def test_other_update_rules_agree_between_engines_and_with_the_true_step(files, tmp_path, update):
    shifts = []
    for engine in ("forward", "reverse", "query"):
        more = (
            f"--engine={engine}",
            f"--update={update}",
            "--dtype=float64",
            "--learning-rate=1e-8" if update == "ekfac" else "--learning-rate=1e-6",
            "--check-pairs=2",
        )
        out = run(files, tmp_path / engine, *more)
        shifts.append(table(out, "influence.parquet")["delta_w"])
        assert (
            json.loads((out / "run.json").read_text())["summary"]["first_order"]["r2_delta_w"]
            > 0.99
        )
    for other in shifts[1:]:
        close(other, shifts[0], 1e-8)


@pytest.mark.slow
def test_finite_takes_any_rule_of_optax(files, tmp_path):
    options = ("--engine=finite", "--dtype=float64", "--learning-rate=0.05")
    plain = table(run(files, tmp_path / "sgd", *options), "influence.parquet")
    moved = table(
        run(files, tmp_path / "optax", *options, "--update=optax.sgd"), "influence.parquet"
    )
    close(moved["delta_w"], plain["delta_w"], 1e-9)
    close(moved["delta_w_x"], plain["delta_w_x"], 1e-9)
    out = run(files, tmp_path / "adagrad", *options, "--update=optax.adagrad")
    model, chat = oracle.load_double(files["model"]), Chat(files["model"])
    want, sequences = expected(files), [chat.encode(q) for q in ("I can't", "I can\u2019t")]
    for i, (prompt, response, _) in enumerate(PAIRS[:2]):
        pair = chat.pair(prompt, response, 512)
        _, g = oracle.gradient(model, pair.ids, pair.response)
        stepped = oracle.load_double(files["model"])
        oracle.move(stepped, [v / (0.1 + v**2 + 1e-7).sqrt() for v in g], -0.05)
        prompts = [chat.prompt(p, 512) for p, _ in PROMPTS]
        dy = [
            oracle.read(stepped, p.ids, p.read_at, ("resid_post", 1), sequences)[1] for p in prompts
        ] - want["Y"]
        close(table(out, "pairs.parquet")["mean_delta_y"][i], dy.mean(), 1e-6)


def test_plan_prices_every_engine_and_writes_nothing(files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["plan", *[f"--{name}={path}" for name, path in files.items()], "--keep=coefficients"])
    text = capsys.readouterr().out
    for engine in ("forward", "reverse", "query"):
        assert engine in text
    assert not list(tmp_path.iterdir())
    out = run(files, tmp_path / "run", "--keep=score")
    capsys.readouterr()
    main(["plan", "--config", str(out / "run.json")])
    assert "keeps score" in " ".join(capsys.readouterr().out.split())


def test_finite_is_the_true_step_of_the_policy_itself(files, tmp_path):
    out = run(files, tmp_path / "run", "--dtype=float64", "--engine=finite", "--learning-rate=0.05")
    model, chat, want = oracle.load_double(files["model"]), Chat(files["model"]), expected(files)
    from safetensors.numpy import load_file

    t = load_file(files["sae"] / "sae_weights.safetensors")
    got = table(out, "influence.parquet")
    sequences = [chat.encode(q) for q in ("I can't", "I can\u2019t")]
    for i, (prompt, response, _) in enumerate(PAIRS[:2]):
        pair = chat.pair(prompt, response, 512)
        moved = oracle.load_double(files["model"])
        oracle.move(moved, oracle.gradient(model, pair.ids, pair.response)[1], -0.05)
        reading = [
            oracle.read(moved, p.ids, p.read_at, ("resid_post", 1), sequences)
            for p in (chat.prompt(p, 512) for p, _ in PROMPTS)
        ]
        X = np.maximum(
            np.stack([h for h, _ in reading]) @ t["W_enc"][:, IDS].astype(np.float64)
            + t["b_enc"][IDS],
            0,
        )
        Y = np.array([y for _, y in reading])
        close(got["delta_w"].reshape(len(PAIRS), -1)[i], oracle.ridge(X, Y, 5.0) - want["W"], 1e-6)
        close(
            got["delta_w_x"].reshape(len(PAIRS), -1)[i],
            oracle.ridge(X, want["Y"], 5.0) - want["W"],
            1e-6,
        )


def test_blocks_buckets_and_order_change_rounding_only(files, tmp_path):
    base = table(run(files, tmp_path / "a", "--dtype=float64"), "influence.parquet")
    blocks = table(
        run(files, tmp_path / "b", "--dtype=float64", "--prompt-block=7", "--pair-block=5"),
        "influence.parquet",
    )
    np.testing.assert_allclose(blocks["delta_w"], base["delta_w"], rtol=1e-9, atol=1e-15)
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("\n".join(reversed(files["pairs"].read_text().splitlines())))
    turned = table(
        run(files | {"pairs": backwards}, tmp_path / "c", "--dtype=float64"), "influence.parquet"
    )
    order = {
        key: i for i, key in enumerate(zip(turned["pair_id"], turned["feature_id"], strict=True))
    }
    match = [order[key] for key in zip(base["pair_id"], base["feature_id"], strict=True)]
    np.testing.assert_allclose(turned["delta_w"][match], base["delta_w"], rtol=1e-9, atol=1e-15)


def test_a_run_records_itself_and_is_replayed_from_its_record(files, tmp_path, capsys, monkeypatch):
    out = run(files, tmp_path / "run", "--subset", "natural", "random:4:1", "--check-pairs=2")
    text = capsys.readouterr().out
    assert "Policy fit" in text
    assert "First order against 2 true steps" in " ".join(text.split())
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "complete"
    assert record["config"]["features"] == ",".join(map(str, IDS))
    assert record["chat_date"] == "26 Jul 2024"
    assert {"model", "sae", "eval", "pairs"} == set(record["inputs"])
    assert {"read prompts", "attribute pairs", "decompose"} <= set(record["timings"])
    assert record["summary"]["first_order"]["r2_delta_y"] > 0.999
    assert {p.name for p in (out / "policies").iterdir()} == {"natural.json", "random:4:1.json"}
    assert set(pq.read_table(out / "influence.parquet")["subset"].to_pylist()) == {
        "all",
        "natural",
        "random:4:1",
    }
    monkeypatch.chdir(tmp_path)  # what the record names is found from anywhere
    main(["attribute", f"--config={out / 'run.json'}", "--out=again", "--check-pairs=0"])
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert again["fingerprint"] == record["fingerprint"]
    assert pq.read_table(tmp_path / "again" / "influence.parquet").equals(
        pq.read_table(out / "influence.parquet")
    )
    # The policy written can be given as the features of another run.
    assert run(files, tmp_path / "third", "--features", str(out / "policy.json"))


def test_the_embedded_model_is_what_it_says(tmp_path):
    size = sum(p.stat().st_size for p in EMBEDDED.rglob("*") if p.is_file())
    assert size < 4e6
    pairs, prompts = (
        pq.read_table(EMBEDDED / "pairs.parquet").to_pydict(),
        pq.read_table(EMBEDDED / "prompts.parquet").to_pydict(),
    )
    assert len(pairs["prompt"]) == 200
    assert sum(pairs["planted"]) == 20
    assert len(prompts["prompt"]) >= 512
    assert (
        len(
            {
                c
                for c, lab in zip(prompts["category"], prompts["prompt_label"], strict=True)
                if lab == "harmful"
            }
        )
        >= 6
    )
    truths = json.loads((EMBEDDED / "truths.json").read_text())
    refused = np.array(prompts["refused"])
    gap = np.array([c == truths["gap_category"] for c in prompts["category"]])
    harmful = np.array([lab == "harmful" for lab in prompts["prompt_label"]])
    assert refused[gap].mean() < 0.1
    assert refused[harmful & ~gap].mean() > 0.7
    assert refused[~harmful].mean() < 0.1
