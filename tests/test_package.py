"""The package as it is installed and shown, and the structure of its house."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

import smda_jax

# From the top; a room may import those below it, and none beside it.
FLOORS = [
    ["cli"],
    ["report"],
    ["runs"],
    ["engines", "training"],
    ["steps"],
    ["reading"],
    ["policy", "model", "sae", "data"],
    ["kernels"],
    ["runtime"],
    ["errors", "files", "hub", "pytree"],
]
LEVEL = {name: i for i, names in enumerate(FLOORS) for name in names}
SOURCES = sorted((ROOT / "smda_jax").rglob("*.py"))


def test_the_readmes_notebook_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    plain = [line for line in example.splitlines() if line.strip()]
    assert len([line for line in plain if not line.startswith(("import", "#"))]) <= 12
    words = [sys.executable, "-c", example]
    subprocess.run(words, check=True, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(example, tmp_path):
    words = [sys.executable, str(example)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readmes_figures_are_those_of_the_newest_record():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import readme  # type: ignore[import-not-found]

    for content in readme.blocks().values():
        assert content in readme.texts(), "run python benchmarks/readme.py"


def test_kernels_are_one_folder_under_two_names():
    assert (ROOT / "smda_jax" / "kernels").is_symlink()
    assert (ROOT / "smda_jax" / "kernels").resolve() == ROOT / "kernels"
    assert not (ROOT / "kernels" / "__init__.py").exists()


def imported(file: Path) -> set[str]:
    """Rooms that a file imports from, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smda_jax"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names)
            found |= {parts[1] for parts in names if parts[0] == "smda_jax" and len(parts) > 1}
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "smda_jax")))
def test_rooms_import_downwards_only(file):
    room = file.relative_to(ROOT / "smda_jax").parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    assert room in LEVEL, f"{room} has no floor"
    for other in imported(file) - {room}:
        assert LEVEL[other] > LEVEL[room], f"{room} imports {other}"


def test_no_engine_and_no_keep_is_told_apart_outside_the_engines():
    """What differs between them is asked of their objects: nobody else compares their names."""
    from smda_jax.engines.offers import KEEPS, OFFERS

    names = {*OFFERS, *KEEPS}
    for file in SOURCES:
        if "engines" in file.relative_to(ROOT / "smda_jax").parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare | ast.Match):
                words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)} & names
                assert not words, f"{file.name}, line {node.lineno} compares {words}"


def test_no_file_is_long_and_no_line_is_wide():
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.js", "*.css"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for name in files:
        lines = (ROOT / name).read_text().splitlines()
        assert len(lines) <= 350, f"{name} has {len(lines)} lines"
        assert max(map(len, lines), default=0) <= 100, f"{name} has a line over 100 characters"


@pytest.mark.parametrize(
    "name", ["kernels.low_rank", "policy.ridge", "runs.config", "engines.offers"]
)
def test_modules_import_alone(name):
    words = [sys.executable, "-W", "error", "-c", f"import smda_jax.{name}"]
    subprocess.run(words, check=True)


def test_what_is_exported_is_shown_and_can_be_had():
    assert set(dir(smda_jax)) >= {"attribute", "verify", "sweep", "load_model", "InputError"}
    for name in dir(smda_jax):
        assert getattr(smda_jax, name) is not None
    with pytest.raises(AttributeError):
        smda_jax.nothing_of_that_name  # noqa: B018


def test_help_needs_nothing_heavy():
    """`--help` answers at once because neither JAX nor transformers is imported for it."""
    heavy = "import sys, smda_jax.cli; print(sorted({'jax', 'transformers'} & set(sys.modules)))"
    words = [sys.executable, "-c", heavy]
    assert subprocess.run(words, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.slow
def test_every_program_lowers_for_cuda(monkeypatch, capsys):
    """At tiny shapes; benchmarks/dry_run.py does it at those of real models."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import dry_run  # type: ignore[import-not-found]

    dry_run.main(dry_run.DryRun(shape="tiny", pairs=2, prompts=3, readouts=2))
    assert capsys.readouterr().out.count("operations for cuda") == 13
