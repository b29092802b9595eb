"""From a run to a decision, through the commands: curate, experiment, validate."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support import EMBEDDED, fails

from smda_jax.cli import main
from smda_jax.data.records import load_pairs, load_prompts
from smda_jax.runs.attribution.columns import COLUMNS
from smda_jax.runs.experiment.compared import bm25
from smda_jax.runs.experiment.curate import rows_of
from smda_jax.runs.experiment.retrain import Job, open_run

RECIPE = "sgd-1e-3x1"  # small plain steps: first order is exact but for rounding


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Some of the embedded prompts and pairs, as jsonl."""
    place = tmp_path_factory.mktemp("data")
    pairs = load_pairs(str(EMBEDDED / "pairs.parquet"))
    rows = [i for i in range(200) if i % 5 == 0 or pairs.planted[i]][:44]
    write(place / "pairs.jsonl", rows_of(pairs.take(rows)))
    prompts = load_prompts(str(EMBEDDED / "prompts.parquet"))
    columns = zip(prompts.text, prompts.label, prompts.category, strict=True)
    some = [dict(zip(("prompt", "prompt_label", "category"), c, strict=True)) for c in columns]
    write(place / "prompts.jsonl", some[::9])
    model, sae = EMBEDDED / "model", EMBEDDED / "sae"
    data = {"eval": place / "prompts.jsonl", "pairs": place / "pairs.jsonl"}
    return {"model": model, "sae": sae, **data}


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def finished(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe."""
    out = tmp_path_factory.mktemp("run") / "run"
    options = [f"--{name}={path}" for name, path in files.items()]
    main(
        [
            "attribute",
            *options,
            f"--out={out}",
            f"--recipe={RECIPE}",
            "--features=contrast:0.5",
            "--bootstrap=20",
        ]
    )
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_run_says_which_step_it_is_of(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    step = record["step"]
    assert (step["recipe"], step["update"]) == (RECIPE, "sgd")
    # Three steps on 44 pairs, at rates of 1, 2/3 and 1/3 of the highest.
    assert step["learning_rate"] == pytest.approx(1e-3 * 2 / 44)
    assert record["config"]["loss_scope"] == "all"


def test_curating_leaves_out_what_the_rule_chooses(files, run: Path) -> None:
    main(["curate", str(run), "--controls=2"])
    out, before = run / "curated", load_pairs(files["pairs"])
    kept, removed = load_pairs(out / "kept.jsonl"), lines(out / "removed.jsonl")
    table = pq.read_table(run / "pairs.parquet").to_pydict()
    flagged = {own for own, f in zip(table["pair_id"], table["flagged_delta_y"], strict=True) if f}
    assert flagged
    assert set(before.ids) - set(kept.ids) == flagged
    record = json.loads((out / "curation.json").read_text())
    assert set(record["removed"]) == flagged
    assert all(row["reason"] == "mean_delta_y" for row in removed)
    for name in ("label", "category", "planted", "response"):
        rows = [before.ids.index(own) for own in kept.ids]
        assert getattr(kept, name) == [getattr(before, name)[i] for i in rows]
    for number in range(2):
        control = load_pairs(out / "controls" / f"control-{number}.jsonl")
        assert sorted(map(str, control.label)) == sorted(map(str, kept.label))
        assert set(control.ids) != set(kept.ids)


def test_repairs(files, run: Path, tmp_path: Path) -> None:
    before = load_pairs(files["pairs"])
    main(["curate", str(run), "--repair=reweight", "--weight=0.25"])
    assert len(load_pairs(run / "curated" / "kept.jsonl")) == len(before)
    weights = (run / "curated" / "weights.csv").read_text().splitlines()
    assert weights[0] == "pair_id,weight"
    assert all(row.endswith(",0.25") for row in weights[1:])
    answers = tmp_path / "answers.jsonl"
    write(answers, [{"pair_id": own, "better": f"Better {i}."} for i, own in enumerate(before.ids)])
    main(["curate", str(run), "--repair=relabel", "--relabel=better", f"--columns-from={answers}"])
    kept = load_pairs(run / "curated" / "kept.jsonl")
    changed = [i for i, own in enumerate(before.ids) if own not in kept.ids]
    assert len(kept) == len(before)
    assert len(changed) == len(weights) - 1
    for i in changed:
        assert (kept.prompt[i], kept.response[i]) == (before.prompt[i], f"Better {i}.")


def test_conversations_and_preferences_stay_what_they_are(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello.", "weight": 0.5},
        {"role": "user", "content": "Bye."},
        {"role": "assistant", "content": "Goodbye.", "weight": 2.0},
    ]
    write(tmp_path / "a.jsonl", [{"messages": turns, "label": "x"}])
    before = load_pairs(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", rows_of(before))
    after = load_pairs(tmp_path / "b.jsonl")
    for name in ("prompt", "response", "history", "weight", "label", "ids"):
        assert getattr(after, name) == getattr(before, name)
    write(tmp_path / "c.jsonl", [{"prompt": "Hi.", "chosen": "Yes.", "rejected": "No."}])
    before = load_pairs(tmp_path / "c.jsonl", "dpo")
    write(tmp_path / "d.jsonl", rows_of(before))
    after = load_pairs(tmp_path / "d.jsonl", "dpo")
    for name in ("prompt", "response", "rejected", "ids"):
        assert getattr(after, name) == getattr(before, name)


def test_a_run_in_bfloat16_is_trained_again_in_float32(finished: Path) -> None:
    """Steps of 2e-5 are lost in bfloat16 parameters: there the passes alone are in it."""
    on = open_run(finished, None, Console(quiet=True))
    narrow = replace(on, config=replace(on.config, dtype="bfloat16"))
    narrow = replace(narrow, inputs=replace(on.inputs, base=on.inputs.base.astype("bfloat16")))
    training = narrow.training
    assert training.model.dtype == np.float32
    assert training.compute == "bfloat16"
    (trained,) = training.trained([narrow.order(Job(tuple(range(16)), on.recipe))])
    before = np.asarray(training.model.params.embed)
    assert np.mean(np.asarray(trained.params.embed) != before) > 0.2


def test_words_that_no_pair_has_match_nothing(finished: Path) -> None:
    on = open_run(finished, None, Console(quiet=True))
    prompts = replace(on.inputs.prompts, text=["Zyzzyva?"] * len(on.inputs.prompts))
    alone = replace(on, inputs=replace(on.inputs, prompts=prompts))
    assert not bm25(alone).any()
    assert bm25(on).any()


@pytest.mark.slow
def test_an_experiment_is_what_its_commands_are_one_by_one(files, run: Path, tmp_path) -> None:
    options = ["--recipe=adamw-5e-4x2", "--seeds=2", "--controls=1"]
    main(["experiment", str(run), *options])
    table = pq.read_table(run / "experiment" / "experiment.parquet").to_pylist()
    assert [row["arm"] for row in table] == [
        "base",
        *["full"] * 2,
        *["curated"] * 2,
        *["control 1"] * 2,
    ]
    main(["curate", str(run), "--controls=1"])
    common = [f"--model={files['model']}"]
    tune = ["--learning-rate=5e-4", "--epochs=2", "--seed=1"]
    names = {
        "full": files["pairs"],
        "curated": run / "curated" / "kept.jsonl",
        "control 1": run / "curated" / "controls" / "control-0.jsonl",
    }
    for name, pairs in names.items():
        out = tmp_path / name
        main(["finetune", *common, f"--pairs={pairs}", f"--out={out}", *tune])
        main(["evaluate", f"--model={out}", f"--eval={files['eval']}", f"--out={out}-eval"])
        found = json.loads(Path(f"{out}-eval", "evaluation.json").read_text())
        (row,) = [r for r in table if r["arm"] == name and r["order"] == 1]
        assert row["mean_y"] == pytest.approx(found["mean_y"], rel=1e-3)
        assert row["f1"] == pytest.approx(found["metrics"]["f1"]["value"], rel=1e-3)
    for name in ("experiment", "shifts"):
        written = pq.read_schema(run / "experiment" / f"{name}.parquet").names
        assert set(written) == set(COLUMNS[f"experiment/{name}.parquet"])
    record = json.loads((run / "experiment" / "experiment.json").read_text())
    (f1,) = [d for d in record["differences"] if d["metric"] == "f1"]
    own = {k: [r["f1"] for r in table if r["arm"] == k] for k in ("curated", "control 1")}
    assert f1["value"] == pytest.approx(np.mean(own["curated"]) - np.mean(own["control 1"]))
    page = (run / "report.html").read_text()
    assert record["finding"].split("'")[0] in page
    trained = sorted((run / "retrained").iterdir())
    times = [file.stat().st_mtime_ns for file in trained]
    main(["experiment", str(run), *options])
    assert [file.stat().st_mtime_ns for file in sorted((run / "retrained").iterdir())] == times


@pytest.mark.slow
def test_the_card_of_small_plain_steps_is_perfect_and_knows_a_broken_score(run: Path) -> None:
    """Sums of plain gradients predict small plain steps; a figure at random does not."""
    main(
        [
            "validate",
            str(run),
            "--subsets=16",
            "--orders=1",
            "--updates",
            "sgd",
            "--trained-at=0",
            "--leave-out=4",
            "--bootstrap=100",
        ]
    )
    rows = pq.read_table(run / "validation.parquet").to_pylist()
    lds = {(r["figure"], r["target"]): r for r in rows if r["measure"] == "lds"}
    for target in ("mean_y", "score", "coefficient median", "category median"):
        assert lds["sgd", target]["value"] > 0.95, target
        assert lds["sgd", target]["low"] <= lds["sgd", target]["value"]
        assert abs(lds["random", target]["value"]) < 0.75
    assert lds["run:mean_delta_y", "mean_y"]["value"] > 0.97
    found = {(r["figure"], r["target"]): r for r in rows if r["measure"] == "auprc"}
    planted = found["run:mean_delta_y", "pooled"]
    assert planted["value"] > 2 * planted["reference"]
    assert found["random", "pooled"]["value"] < planted["value"]
    patch = {r["figure"]: r for r in rows if r["measure"] == "tail patch"}
    assert patch["sgd"]["value"] > patch["sgd"]["reference"]
    assert set(rows[0]) == set(COLUMNS["validation.parquet"])
    said = json.loads((run / "validation.json").read_text())["findings"]
    assert said[0].startswith("mean_y: ")
    assert said[0] in (run / "report.html").read_text().replace("\\u2026", "…")
    assert not any(s.startswith("run:mean_delta_y fails") for s in said)
    # A figure broken on purpose: every pair has another's.
    table = pq.read_table(run / "pairs.parquet").to_pydict()
    order = np.argsort(table["mean_delta_y"])
    broken = np.array(table["mean_delta_y"])
    broken[order] = broken[order[::-1]]
    pq.write_table(pa.table(table | {"mean_delta_y": broken.tolist()}), run / "pairs.parquet")
    main(
        [
            "validate",
            str(run),
            "--subsets=16",
            "--orders=1",
            "--updates",
            "sgd",
            "--trained-at=0",
            "--leave-out=0",
            "--bootstrap=100",
        ]
    )
    said = json.loads((run / "validation.json").read_text())["findings"]
    assert any(s.startswith("run:mean_delta_y fails the card") for s in said)


@pytest.mark.slow
def test_a_killed_experiment_goes_on(run: Path) -> None:
    options = ["--recipe=adamw-5e-4x2", "--seeds=3", "--controls=1"]
    words = [sys.executable, "-m", "smda_jax", "experiment", str(run), *options]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    place = run / "retrained"
    while len(list(place.glob("*.npz"))) < 2 and running.poll() is None:
        time.sleep(0.01)
    running.kill()
    running.wait()
    kept = {file.name: file.stat().st_mtime_ns for file in place.glob("*.npz")}
    assert not (run / "experiment").exists()
    main(["experiment", str(run), *options])
    after = {file.name: file.stat().st_mtime_ns for file in place.glob("*.npz")}
    assert len(after) == 9
    assert {name: after[name] for name in kept} == kept


def test_parts_of_an_array_job_make_the_whole(run: Path, capsys) -> None:
    options = ["--recipe=sgd-1e-3x1", "--seeds=2", "--controls=1"]
    main(["experiment", str(run), *options, "--part=1/2"])
    assert "left to other parts" in capsys.readouterr().out
    assert not (run / "experiment").exists()
    main(["experiment", str(run), *options, "--part=2/2"])
    main(["experiment", str(run), *options])
    assert (run / "experiment" / "experiment.parquet").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["curate", "nowhere"], ("nowhere", "not a run folder")),
        (["curate", "{run}", "--rule=top:0"], ("--rule", "'0'")),
        (["curate", "{run}", "--rule=label:none"], ("--rule", "no pair", "harmful_refusal")),
        (["curate", "{run}", "--rule=not top:1 or top:1"], ("--rule", "every pair")),
        (["curate", "{run}", "--repair=relabel"], ("--relabel",)),
        (["curate", "{run}", "--weight=0.5"], ("--weight", "reweight")),
        (["curate", "{run}", "--rule=column:x"], ("--rule", "--columns-from")),
        (["experiment", "{run}", "--recipe=what"], ("--recipe", "what")),
        (["experiment", "{run}", "--seeds=1"], ("--seeds",)),
        (["experiment", "{run}", "--part=3/2"], ("--part", "3/2")),
        (["experiment", "{run}", "--positive=x"], ("--positive", "x", "harmful")),
        (["validate", "{run}", "--fraction=1"], ("--fraction",)),
        (["validate", "{run}", "--updates", "nothing"], ("--update", "nothing")),
    ],
)
def test_bad_input_is_one_line(finished: Path, capsys, words, says) -> None:
    fails(capsys, lambda: main([word.format(run=finished) for word in words]), *says)


def test_inputs_that_changed_are_refused(run: Path, files, tmp_path, capsys) -> None:
    record = json.loads((run / "run.json").read_text())
    other = tmp_path / "pairs.jsonl"
    other.write_text(files["pairs"].read_text().replace("Of course", "Well"))
    record["config"]["pairs"] = str(other)
    (run / "run.json").write_text(json.dumps(record))
    fails(capsys, lambda: main(["curate", str(run)]), "changed since the run")
