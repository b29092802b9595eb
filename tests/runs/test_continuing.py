"""Runs that are stopped, short of memory, or finished: they continue, and say so."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import IDS, PAIRS, run, table

from smda_jax.runtime.memory import TooLargeError
from smda_jax.runtime.programs import Program


def test_a_block_too_large_for_memory_is_halved_until_it_fits(files, tmp_path, monkeypatch):
    base = table(
        run(files, tmp_path / "a", "--dtype=float64", "--engine=forward"), "influence.parquet"
    )
    calls, real = [], Program.run

    def refuse_large(self, *args, **static):
        calls.append(self.name)
        if self.name == "forward" and args[1].pairs * args[2].lanes > 2:
            raise TooLargeError("needs 9.0 GiB of 1.0")
        return real(self, *args, **static)

    monkeypatch.setattr(Program, "run", refuse_large)
    small = table(
        run(files, tmp_path / "b", "--dtype=float64", "--engine=forward"), "influence.parquet"
    )
    assert calls.count("forward") > 10
    np.testing.assert_allclose(small["delta_w"], base["delta_w"], rtol=1e-9, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--engine=reverse", "--update=adam"), marks=pytest.mark.exhaustive),
        pytest.param(("--engine=query",), marks=pytest.mark.exhaustive),
        ("--engine=query", "--keep=score"),
    ],
)
def test_whatever_program_runs_out_of_memory_first_is_asked_for_less(
    files, tmp_path, monkeypatch, options
):
    options = ("--dtype=float64", "--check-pairs=2", *options)
    base = table(run(files, tmp_path / "a", *options), "scores.parquet")
    refused, real = set(), Program.run

    def refuse_first(self, *args, **static):
        if self.name not in refused:
            refused.add(self.name)
            raise TooLargeError("needs 9.0 GiB of 1.0")
        return real(self, *args, **static)

    monkeypatch.setattr(Program, "run", refuse_first)
    small = table(run(files, tmp_path / "b", *options), "scores.parquet")
    assert len(refused) > 3
    np.testing.assert_allclose(small["score"], base["score"], rtol=1e-9, atol=1e-15)


@pytest.mark.exhaustive
def test_a_base_computed_anew_leaves_the_plan_as_it_was(files, tmp_path):
    """What a run began with holds, whatever a later planner would choose."""
    out = run(files, tmp_path / "run")
    shutil.rmtree(out / "jacobian")
    record = json.loads((out / "run.json").read_text())
    assert record["plan"]["engine"] != "reverse"
    record["plan"] |= {"engine": "reverse", "pair_block": 3}
    (out / "run.json").write_text(json.dumps(record))
    run(files, out)
    again = json.loads((out / "run.json").read_text())["plan"]
    assert (again["engine"], again["pair_block"]) == ("reverse", 3)


def test_another_configuration_on_the_same_folder_is_refused(files, tmp_path, capsys):
    out = run(files, tmp_path / "run")
    before = (out / "run.json").read_text()
    with pytest.raises(SystemExit) as stop:
        run(files, out, "--alpha=7")
    assert stop.value.code == 2
    assert "another configuration (alpha changed)" in capsys.readouterr().err
    assert (out / "run.json").read_text() == before
    run(files, out)  # the same one runs again, from the cache


@pytest.mark.slow
def test_killed_at_a_random_block_and_resumed_equals_uninterrupted(files, tmp_path):
    seed = int(time.time())
    stop_after = np.random.default_rng(seed).integers(1, 4)
    options = [f"--{name}={path}" for name, path in files.items()]
    features = ",".join(map(str, IDS))
    command = [
        sys.executable,
        "-m",
        "smda_jax",
        "attribute",
        "--recipe=sgd-step",
        *options,
        f"--features={features}",
        "--prompt-block=3",
        "--pair-block=1",
    ]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, f"--out={killed}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(list((killed / "jacobian").glob("pairs-??????-????"))) < stop_after:
        assert process.poll() is None, f"ended before it could be killed (seed {seed})"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((killed / "run.json").read_text())["status"] == "running"
    done = {p.name: p.stat().st_mtime_ns for p in (killed / "jacobian").glob("pairs-??????-????")}
    again = subprocess.run(
        [*command, f"--out={killed}"], check=True, capture_output=True, text=True
    )
    assert f"continuing: {len(done) / len(PAIRS):.0%} of the work is done" in again.stdout
    assert {name: (killed / "jacobian" / name).stat().st_mtime_ns for name in done} == done
    subprocess.run([*command, f"--out={tmp_path / 'fresh'}"], check=True, capture_output=True)
    for name in ("influence.parquet", "pairs.parquet", "prompts.parquet"):
        assert pq.read_table(killed / name).equals(pq.read_table(tmp_path / "fresh" / name)), (
            f"{name} (seed {seed})"
        )


def test_ctrl_c_leaves_a_resumable_folder_and_says_so(files, tmp_path):
    options = [f"--{name}={path}" for name, path in files.items()]
    command = [
        sys.executable,
        "-m",
        "smda_jax",
        "attribute",
        "--recipe=sgd-step",
        *options,
        f"--features={','.join(map(str, IDS))}",
        "--pair-block=1",
        f"--out={tmp_path / 'run'}",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "run" / "jacobian").glob("pairs-??????-????")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "the same command continues" in error
    assert "Traceback" not in error


def test_a_finished_run_is_shown_again_and_says_so(files, tmp_path, capsys):
    out = run(files, tmp_path / "run", "--bootstrap=0")
    timings = json.loads((out / "run.json").read_text())["timings"]
    assert "is finished" not in capsys.readouterr().out
    run(files, out, "--bootstrap=0")
    assert "this run is finished" in capsys.readouterr().out
    assert json.loads((out / "run.json").read_text())["timings"] == timings
