"""Many devices and many processes, through the command, against one."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import IDS


def command(files, out, *more: str) -> list[str]:
    options = [f"--{name}={path}" for name, path in files.items()]
    features = ",".join(map(str, IDS))
    return [
        sys.executable,
        "-m",
        "smda_jax",
        "attribute",
        "--recipe=sgd-step",
        *options,
        f"--features={features}",
        f"--out={out}",
        "--dtype=float64",
        *more,
    ]


def environment(devices: int, **more: str) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | more


def influence(out) -> np.ndarray:
    table = pq.read_table(out / "influence.parquet")
    return np.stack([table[name].to_numpy() for name in ("delta_w_x", "delta_w_y")])


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run(
        command(files, out, "--engine=forward"), check=True, capture_output=True, env=environment(1)
    )
    return influence(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--engine=reverse", "--shard-params=2"],
        pytest.param(["--engine=query"], marks=pytest.mark.exhaustive),
        pytest.param(["--engine=forward", "--shard-params=8"], marks=pytest.mark.exhaustive),
    ],
)
def test_eight_devices_give_the_result_of_one(files, tmp_path, alone, options):
    done = subprocess.run(
        command(files, tmp_path / "run", *options),
        capture_output=True,
        text=True,
        env=environment(8),
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(influence(tmp_path / "run"), alone, rtol=1e-8, atol=1e-13)


def start_two(files, out, *options: str) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    own = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    return [
        subprocess.Popen(
            command(files, out, "--distributed", *options),
            env=environment(2, JAX_PROCESS_ID=str(i), **own),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(files, tmp_path, alone):
    both = start_two(files, tmp_path / "run", "--engine=reverse")
    for process in both:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    np.testing.assert_allclose(influence(tmp_path / "run"), alone, rtol=1e-8, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_process_that_dies_ends_the_run_and_leaves_a_folder_that_continues(
    files, tmp_path, alone, victim
):
    out = tmp_path / "run"
    both = start_two(files, out, "--engine=forward", "--pair-block=1")
    while not list((out / "jacobian").glob("pairs-*")):
        assert all(process.poll() is None for process in both)
        time.sleep(0.005)
    both[victim].kill()
    _, error = both[1 - victim].communicate(timeout=120)
    both[victim].communicate()
    if victim:
        assert both[0].returncode == 2, error
        assert "another process of this run has ended" in error
        assert "Traceback" not in error
    else:  # JAX's coordination service ran there: JAX itself ends the other
        assert both[1].returncode != 0, error
        assert "another task died" in error
    subprocess.run(
        command(files, out, "--engine=forward", "--pair-block=1"), check=True, env=environment(1)
    )
    np.testing.assert_allclose(influence(out), alone, rtol=1e-8, atol=1e-13)
