"""Bad input through the command: one line, status 2, nothing half-written."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import PAIRS, PROMPTS, ROOT, fails, run

from smda_jax.cli import main


def rows(path, *records):
    path.write_text("\n".join(json.dumps(r) for r in records))
    return path


LONG = {"prompt": "How do I " + "bake " * 600, "prompt_label": "harmless"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer=7"], ["layer 7 is out of range", "0 to 2"]),
        (["--features=3,99"], ["id 99 is out of range", "0 to 32"]),
        (["--features=3,3"], ["id 3 is given twice"]),
        (["--features=contrast:99"], ["no mean difference exceeds 99", "--features contrast:"]),
        (["--features=nowhere.txt"], ["'nowhere.txt' is neither ids nor a file"]),
        (["--target-ids", "40,649", "40"], ["not prefix-free"]),
        (["--target-ids", "40,x"], ["is not token ids"]),
        (["--target-ids", "40,99999"], ["token 99999 is not in the model's vocabulary"]),
        (["--subset", "everyone"], ["unknown name 'everyone'"]),
        (["--subset", "random:999"], ["asks for 999"]),
        (["--max-length=12"], ["prompts.jsonl, row 1", "over max_length"]),
        (["--alpha=-1"], ["--alpha", "below 0"]),
        (["--pair-block=-1"], ["--pair-block"]),
        (["--batch=0"], ["--batch", "below 1"]),
        (["--seed=-1"], ["--seed", "below 0"]),
        (["--update=adamx"], ["--update", "adamx is not known", "optax.NAME"]),
        (["--update=optax.lion"], ["--update", "--engine finite"]),
        (["--update=optax.nonsense", "--engine=finite"], ["optax.nonsense is no optimiser"]),
        (["--gate=off", "--engine=finite"], ["--gate", "first-order notion"]),
        (["--alpha=0", "--features=all"], ["cannot be factored"]),
        (["--model=/nowhere/at/all"], ["no such folder"]),
        (["--sae=/nowhere/at/all"], ["no such folder"]),
        (["--eval=nowhere.parquet"], ["nowhere.parquet: no such file"]),
        (["--config=nowhere.json"], ["nowhere.json", "run.json"]),
    ],
)
def test_options_that_no_run_can_use(files, tmp_path, capsys, options, words):
    names = {option.split("=")[0].removeprefix("--") for option in options}
    kept = {k: v for k, v in files.items() if k not in names}
    fails(capsys, lambda: run(kept, tmp_path / "run", *options), *words)
    if (
        "cannot be factored" not in words
    ):  # found at the end, when the cache is already worth keeping
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("which", "records", "words"),
    [
        ("eval", [LONG], ["row 1", "over max_length"]),
        (
            "eval",
            [{"prompt": PAIRS[1][0] + " "}, {"prompt": "x"}],
            ["row 1", "also trained on in pairs.jsonl, row 2", "--on-overlap"],
        ),
        (
            "eval",
            [{"prompt": "x", "shows": "bad"}],
            ["bad.jsonl, row 1", "shows is 'bad'"],
        ),
        (
            "pairs",
            [{"prompt": "x", "response": "y"}, {"prompt": LONG["prompt"], "response": "y"}],
            ["row 2", "none of the response"],
        ),
        ("pairs", [{"prompt": "x", "response": "y"}] * 2, ["row 2", "repeats row 1"]),
    ],
)
def test_records_that_no_run_can_use(files, tmp_path, capsys, which, records, words):
    bad = rows(tmp_path / "bad.jsonl", *records)
    fails(capsys, lambda: run(files | {which: bad}, tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_overlap_dropped_or_kept_is_said_and_recorded(files, tmp_path, capsys):
    overlapping = rows(
        tmp_path / "eval.jsonl", *({"prompt": p} for p, _ in PROMPTS), {"prompt": PAIRS[0][0]}
    )
    for policy, count in (("drop", len(PROMPTS)), ("keep", len(PROMPTS) + 1)):
        out = run(files | {"eval": overlapping}, tmp_path / policy, f"--on-overlap={policy}")
        record = json.loads((out / "run.json").read_text())
        assert (record["prompts"], record["prompts_overlapping_with_pairs"]) == (count, 1)
        assert "1 evaluation prompts are also trained on" in capsys.readouterr().out


def test_long_pairs_are_cut_counted_and_said(files, tmp_path, capsys):
    out = run(files, tmp_path / "run", "--max-length=50")
    assert "pairs are cut to 50 tokens" in capsys.readouterr().out
    assert json.loads((out / "run.json").read_text())["pairs_truncated"] > 0


def test_an_overridden_layer_is_said_loudly(files, tmp_path, capsys):
    run(files, tmp_path / "run", "--layer=0")
    assert "--layer 0 overrides layer 1" in capsys.readouterr().out


def test_checkpoints_that_no_run_can_use(files, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(files["model"], model)
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.2.mlp.gate_proj.weight"

    def attempt(*words):
        fails(capsys, lambda: run(files | {"model": model}, tmp_path / "run"), *words)
        assert not (tmp_path / "run").exists()

    save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, weights)
    attempt(name, "NaN")
    # Finite weights whose activations are not.
    save_file(tensors | {name: np.full_like(tensors[name], 3e38)}, weights)
    attempt("prompts.jsonl, row 1", "not finite")
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    attempt(name, "missing")
    weights.write_bytes(b"junk")
    attempt("not a readable safetensors file")
    (model / "tokenizer.json").unlink()
    shutil.copy(files["model"] / "model.safetensors", weights)
    attempt("no tokenizer")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(files, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(files["model"], model)
    raw = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(raw | {"vocab_size": 300}))
    tensors = load_file(model / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: tensors[name][:300].copy()}, model / "model.safetensors")
    fails(
        capsys,
        lambda: run(files | {"model": model}, tmp_path / "run"),
        "is not in the model's vocabulary of 300",
    )


def test_an_empty_subset_is_refused_before_anything_is_written(files, tmp_path, capsys):
    bare = rows(tmp_path / "bare.jsonl", *({"prompt": p} for p, _ in PROMPTS))
    fails(
        capsys,
        lambda: run(files | {"eval": bare}, tmp_path / "run", "--subset", "balanced"),
        "balanced is empty",
    )
    assert not (tmp_path / "run").exists()


def test_control_tokens_in_a_text_are_said(files, tmp_path, capsys):
    odd = rows(
        tmp_path / "odd.jsonl",
        *({"prompt": p} for p, _ in PROMPTS),
        {"prompt": "[bold]Hi <|eot_id|> there"},
    )
    run(files | {"eval": odd}, tmp_path / "run")
    assert "1 texts spell out control tokens" in capsys.readouterr().out


def test_a_changed_file_of_features_is_another_configuration(files, tmp_path, capsys):
    ids = tmp_path / "ids.txt"
    ids.write_text("1 2 3")
    out = run(files, tmp_path / "run", f"--features={ids}")
    ids.write_text("4 5")
    fails(capsys, lambda: run(files, out, f"--features={ids}"), "another configuration")


def test_an_sae_of_another_width_is_refused(files, tmp_path, capsys):
    other = ROOT / "tests" / "sae" / "fixtures" / "jumprelu"
    fails(
        capsys,
        lambda: run(files | {"sae": other}, tmp_path / "run", "--layer=0"),
        "reads width 12, the model's hidden size is 24",
    )


def test_folders_that_cannot_be_the_run_folder(files, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    fails(capsys, lambda: run(files, tmp_path / "file"), "is a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    fails(capsys, lambda: run(files, tmp_path / "full"), "is not empty and holds no run")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_a_step_that_turns_non_finite_names_its_pair(files, tmp_path, capsys):
    fails(
        capsys,
        lambda: run(files, tmp_path / "run", "--learning-rate=1e39"),
        "pairs.jsonl, row",
        "(pair ",
        "is not finite",
    )


def test_a_damaged_block_is_named_with_its_remedy(files, tmp_path, capsys):
    out = run(files, tmp_path / "run")
    block = out / "jacobian" / "pairs-000001-0000"
    assert block.is_dir()
    for file in block.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    capsys.readouterr()
    fails(capsys, lambda: run(files, out), "pairs-000001", "delete it and run again")
    shutil.rmtree(block)
    run(files, out)


def test_too_little_memory_is_said_in_one_line(files, tmp_path, capsys, monkeypatch):
    from smda_jax.runtime import programs

    monkeypatch.setattr(programs, "memory_limit", lambda: 1000)
    error = fails(capsys, lambda: run(files, tmp_path / "run"))
    assert "memory" in error
    assert "--dtype" in error


def test_a_full_disk_is_said_in_one_line(files, tmp_path, capsys, monkeypatch):
    from smda_jax.runs.folder import store

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(store.ocp, "save", full)
    fails(capsys, lambda: run(files, tmp_path / "run"), "the disk is full", "continues")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_said_in_one_line(files, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    fails(capsys, lambda: run(files, tmp_path / "locked" / "run"), "cannot be written")


def test_choices_are_checked_from_python_too(files, tmp_path):
    """In a process of its own, where no checker of types comes first."""
    code = """if True:
    import json, sys, smda_jax as smda
    settings, options = json.loads(sys.argv[1])
    for option in options:
        try: smda.attribute(smda.Attribute(**settings, **option))
        except smda.InputError as error: print(error)
    """
    settings = {name: str(path) for name, path in files.items()} | {"out": str(tmp_path / "run")}
    options = [
        {"gate": "Off"},
        {"loss_scope": "respons"},
        {"encoder": "Native"},
        {"engine": "foo"},
        {"targets": "I can't"},
    ]
    words = [sys.executable, "-c", code, json.dumps([settings, options])]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split(";")[0] for line in said] == [
        "--gate: 'Off' is not known",
        "--loss-scope: 'respons' is not known",
        "--encoder: 'Native' is not known",
        "--engine: 'foo' is not known",
        '--targets: "I can\'t" is one text',
    ]
    assert not (tmp_path / "run").exists()


def test_inspect_describes_and_says_what_fits(files, tmp_path, capsys):
    out = run(files, tmp_path / "run")
    capsys.readouterr()
    main(["inspect", *map(str, files.values()), str(out)])
    text = capsys.readouterr().out
    for words in (
        "llama checkpoint",
        "SAE (jumprelu): 33 features",
        "7 evaluation prompts",
        "5 training pairs",
        "run (complete)",
        "the SAE reads resid_post of layer 1 of 3",
        "0 evaluation prompts",
    ):
        assert words in text
    main(["inspect", str(out / "policy.json"), str(out / "run.json")])
    assert "policy: 5 features" in capsys.readouterr().out
    sae = tmp_path / "sae"
    shutil.copytree(files["sae"], sae)
    config = json.loads((sae / "cfg.json").read_text())
    (sae / "cfg.json").write_text(json.dumps(config | {"metadata": {}, "hook_name": ""}))
    main(["inspect", str(files["model"]), str(sae)])
    assert "of a layer that attribute needs (--layer)" in capsys.readouterr().out
    fails(capsys, lambda: main(["inspect", str(tmp_path)]), "neither a checkpoint")
    fails(capsys, lambda: main(["inspect"]), "names nothing")


def test_no_command_of_a_checkpoint_is_run(files, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(files["model"], model)
    raw = json.loads((model / "tokenizer_config.json").read_text())
    raw |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (model / "tokenizer_config.json").write_text(json.dumps(raw))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with contextlib.suppress(
        SystemExit
    ):  # whether the plain tokenizer can be read all the same is up to transformers
        run(files | {"model": model}, tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_help_names_every_field_and_imports_nothing_heavy():
    code = (
        "import sys; from smda_jax.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('jax', 'transformers', 'orbax', 'scipy', 'pyarrow', 'numpy') if m "
        "in sys.modules])"
    )
    from dataclasses import fields

    from smda_jax.runs.config import Attribute

    for command in (["--help"], ["attribute", "--help"]):
        out = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
        ).stdout
        assert out.endswith("[]\n"), out[-200:]
    for f in fields(Attribute):
        assert f"--{f.name.replace('_', '-')}" in out
