"""The package as it is installed and shown, and the structure of its house."""

import ast
import re
import subprocess
import sys
import tomllib
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
    ["files", "hub", "pytree"],
    ["errors"],
]
# The same inside `runs`.
RUNS = [
    ["fit"],
    ["experiment"],
    ["sweep"],
    ["attribution"],
    ["tuning", "evaluation"],
    ["inputs"],
    ["folder"],
    ["config", "commands"],
    ["questions"],
    ["checks", "command", "progress", "recipes"],
]
# A search does not follow the link by which the kernels are a room of the package too.
SOURCES = sorted(
    path.relative_to(root)
    for root in (ROOT, ROOT / "smda_jax")
    for path in (root / "kernels" if root == ROOT else root).rglob("*.py")
)


# Of these each shows what further tests do too.
FURTHER = (
    "attribute_by_hand.py",
    "run_and_verify.py",
    "politeness.py",
    "update_of_your_own.py",
)
EXAMPLES = [
    pytest.param(path.name, marks=[pytest.mark.exhaustive] * (path.name in FURTHER))
    for path in sorted((ROOT / "examples").glob("*.py"))
]


@pytest.mark.slow
def test_the_readmes_notebook_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    plain = [line for line in example.splitlines() if line.strip()]
    assert len([line for line in plain if not line.startswith(("import", "#"))]) <= 12
    words = [sys.executable, "-c", example]
    subprocess.run(words, check=True, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(example, tmp_path):
    words = [sys.executable, str(ROOT / "examples" / example)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readmes_figures_are_those_of_the_newest_record():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import readme  # type: ignore[import-not-found]

    for content in readme.blocks().values():
        assert content in readme.texts(), "run python benchmarks/readme.py"


def test_every_room_is_installed():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {".".join(("smda_jax", *file.parts[:-1])) for file in SOURCES}
    assert rooms <= set(named)


def test_kernels_are_one_folder_under_two_names():
    assert (ROOT / "smda_jax" / "kernels").is_symlink()
    assert (ROOT / "smda_jax" / "kernels").resolve() == ROOT / "kernels"
    assert not (ROOT / "kernels" / "__init__.py").exists()


def imported(file: Path) -> set[tuple[str, ...]]:
    """Modules of the package that a file imports from, wherever in it, without its name."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse((ROOT / "smda_jax" / file).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        split = (tuple(name.split(".")) for name in names)
        found |= {parts[1:] for parts in split if parts[0] == "smda_jax" and len(parts) > 1}
    return found


def check_floors(floors: list[list[str]], room: str, others: set[str]) -> None:
    level = {name: i for i, names in enumerate(floors) for name in names}
    assert room in level, f"{room} has no floor"
    for other in others - {room}:
        assert level[other] > level[room], f"{room} imports {other}"


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_rooms_import_downwards_only(file):
    rooms = [part.removesuffix(".py") for part in file.parts]
    if rooms[0] in ("__init__", "__main__"):
        return
    check_floors(FLOORS, rooms[0], {parts[0] for parts in imported(file)})
    if rooms[0] == "runs" and rooms[1] != "__init__":
        beside = {parts[1] for parts in imported(file) if parts[0] == "runs"}
        check_floors(RUNS, rooms[1], beside)


def test_no_engine_and_no_keep_is_told_apart_outside_the_engines():
    """What differs between them is asked of their objects: nobody else compares their names."""
    from smda_jax.engines.offers import KEEPS, OFFERS

    names = {*OFFERS, *KEEPS}
    for file in SOURCES:
        if "engines" in file.parts:
            continue
        for node in ast.walk(ast.parse((ROOT / "smda_jax" / file).read_text())):
            if isinstance(node, ast.Compare | ast.Match):
                inside = list(ast.walk(node))
                about = {getattr(n, "id", "") + getattr(n, "attr", "") for n in inside}
                if not any("engine" in word or "keep" in word for word in about):
                    continue  # a column may have the name too
                words = {n.value for n in inside if isinstance(n, ast.Constant)} & names
                assert not words, f"{file}, line {node.lineno} compares {words}"


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
