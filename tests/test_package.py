"""The package as it is installed and shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_readmes_notebook_example_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert (
        len(
            [
                line
                for line in example.splitlines()
                if line.strip() and not line.startswith(("import", "#"))
            ]
        )
        <= 12
    )
    subprocess.run(
        [sys.executable, "-c", example], check=True, cwd=ROOT, capture_output=True, text=True
    )


def test_the_readmes_figures_are_those_of_the_newest_record():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import readme  # type: ignore[import-not-found]

    for content in readme.blocks().values():
        assert content in (ROOT / "README.md").read_text(), "run python benchmarks/readme.py"


def test_kernels_are_one_folder_under_two_names():
    assert (ROOT / "smda_jax" / "kernels").is_symlink()
    assert (ROOT / "smda_jax" / "kernels").resolve() == ROOT / "kernels"
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_rooms_import_downwards_only():
    floors = [
        ["cli"],
        ["report"],
        ["runs"],
        ["jacobian"],
        ["train"],
        ["policy", "model", "sae", "data", "kernels"],
    ]
    level = {name: i for i, names in enumerate(floors) for name in names}
    for file in (ROOT / "smda_jax").rglob("*.py"):
        room = file.relative_to(ROOT / "smda_jax").parts[0].removesuffix(".py")
        if room not in level:
            continue
        for other in re.findall(
            r"^\s*(?:from|import) smda_jax\.(\w+)", file.read_text(), flags=re.M
        ):
            if other in level and other != room:
                assert level[other] > level[room], f"{file.name} of {room} imports {other}"


@pytest.mark.parametrize(
    "name", ["smda_jax.kernels.low_rank", "smda_jax.policy.ridge", "smda_jax.runs.config"]
)
def test_modules_import_alone(name):
    subprocess.run([sys.executable, "-W", "error", "-c", f"import {name}"], check=True)


def test_every_program_lowers_for_cuda(monkeypatch, capsys):
    """At tiny shapes; benchmarks/dry_run.py does it at those of real models."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import dry_run  # type: ignore[import-not-found]

    dry_run.main(dry_run.DryRun(shape="tiny", pairs=2, prompts=3, readouts=2))
    assert capsys.readouterr().out.count("operations for cuda") == 13
