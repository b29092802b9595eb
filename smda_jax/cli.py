"""The command `smda-jax`: a table of commands, which are parsed, run, and told errors of.

Heavy imports wait until a command is known.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from smda_jax.errors import InputError
from smda_jax.runs.commands import Fit, Inspect, Report, Sweep, Verify
from smda_jax.runs.config import Attribute, Demo, Plan
from smda_jax.runs.evaluation.config import Evaluate
from smda_jax.runs.experiment.config import Curate, Experiment, Validate
from smda_jax.runs.folder.replay import from_run
from smda_jax.runs.tuning.config import Finetune

# Of `demo --validate`.
DEMO_UPDATES, DEMO_SUBSETS, DEMO_RECIPE = ("sgd", "adamw"), 48, "adamw-5e-4x3"


def _attribute(command: Attribute, console: Any) -> None:
    from smda_jax.report.page import report
    from smda_jax.report.terminal import print_summary
    from smda_jax.runs.attribution.attribute import attribute

    print_summary(attribute(command, console), console)
    report(Report(run=command.out), console)


def _demo(command: Demo, console: Any) -> None:
    _attribute(command.attribute(), console)
    if command.validate:
        _validate(Validate(run=command.out, updates=DEMO_UPDATES, subsets=DEMO_SUBSETS), console)
        # At the authors' rate so small a model hardly changes.
        _experiment(Experiment(run=command.out, recipe=DEMO_RECIPE), console)


def _plan(command: Plan, console: Any) -> None:
    from smda_jax.runs.attribution.planning import print_plan

    print_plan(command, console)


def _sweep(command: Sweep, console: Any) -> None:
    from smda_jax.runs.sweep.run import sweep
    from smda_jax.runs.sweep.show import show

    if command.show:
        show(command.run, console)
    else:
        sweep(command, console)


def _verify(command: Verify, console: Any) -> None:
    from smda_jax.report.page import report
    from smda_jax.runs.attribution.verify import verify

    verify(command, console)
    report(Report(run=command.run), console)


def _report(command: Report, console: Any) -> None:
    from smda_jax.report.page import report

    report(command, console)


def _fit(command: Fit, console: Any) -> None:
    from smda_jax.runs.fit.run import fit

    fit(command, console)


def _inspect(command: Inspect, console: Any) -> None:
    from smda_jax.runs.inputs.inspect import inspect

    inspect(command, console)


def _finetune(command: Finetune, console: Any) -> None:
    from smda_jax.runs.tuning.finetune import finetune

    finetune(command, console)


def _evaluate(command: Evaluate, console: Any) -> None:
    from smda_jax.runs.evaluation.evaluate import evaluate

    evaluate(command, console)


def _curate(command: Curate, console: Any) -> None:
    from smda_jax.runs.experiment.curate import curate

    curate(command, console)


def _redraw(run: Path, console: Any) -> None:
    """The page anew, without saying again what was said before."""
    from rich.console import Console
    from rich.markup import escape

    from smda_jax.report.page import report

    page = report(Report(run=run), Console(quiet=True))
    console.print(f"Page: {escape(str(page))}", soft_wrap=True)


def _experiment(command: Experiment, console: Any) -> None:
    from smda_jax.runs.experiment.experiment import experiment

    if experiment(command, console):
        _redraw(command.run, console)


def _validate(command: Validate, console: Any) -> None:
    from smda_jax.runs.experiment.validate import validate

    if validate(command, console):
        _redraw(command.run, console)


class Command(NamedTuple):
    """A row of the table of commands.

    Attributes:
        config: dataclass of its options.
        run: what it does.
        continues: whether the same command continues it when it was interrupted.
        replays: whether `--config` starts it from a recorded run.
    """

    config: type
    run: Callable[[Any, Any], None]
    continues: bool = False
    replays: bool = False


COMMANDS = {
    "attribute": Command(Attribute, _attribute, continues=True, replays=True),
    "plan": Command(Plan, _plan, replays=True),
    "sweep": Command(Sweep, _sweep, continues=True),
    "verify": Command(Verify, _verify),
    "fit": Command(Fit, _fit),
    "finetune": Command(Finetune, _finetune, continues=True),
    "evaluate": Command(Evaluate, _evaluate, continues=True),
    "curate": Command(Curate, _curate),
    "experiment": Command(Experiment, _experiment, continues=True),
    "validate": Command(Validate, _validate, continues=True),
    "report": Command(Report, _report),
    "demo": Command(Demo, _demo, continues=True),
    "inspect": Command(Inspect, _inspect),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; exit status 2 for input that cannot be used, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config: Any = None
    try:
        config = _parse(arguments)
        _run(config)
    except InputError as error:
        print(f"smda-jax: error: {error}", file=sys.stderr)
        _leave(config, 2)
    except KeyboardInterrupt:
        row = _row(config)
        kept = ": finished parts are kept, the same command continues"
        note = kept if row is not None and row.continues else ""
        print(f"\nsmda-jax: interrupted{note}", file=sys.stderr)
        _leave(config, 130)


def _row(config: Any) -> Command | None:
    return next((row for row in COMMANDS.values() if row.config is type(config)), None)


def _leave(config: Any, status: int) -> None:
    if getattr(config, "distributed", False):
        from smda_jax.runtime.processes import leave

        leave(status)
    sys.exit(status)


def _parse(arguments: list[str]) -> Any:
    import tyro

    default, union = _recorded(arguments), None
    for name, row in COMMANDS.items():
        replayed = default is not None and arguments[0] == name
        own: dict[str, Any] = {"default": default} if replayed else {}
        # A union of annotated dataclasses is how tyro takes subcommands.
        one: Any = Annotated[row.config, tyro.conf.subcommand(name, **own)]
        union = one if union is None else union | one
    return tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[union],
        prog="smda-jax",
        description="Which training pairs shape a model's behaviour, and through which features.",
        args=arguments or ["--help"],
    )


def _recorded(arguments: list[str]) -> Attribute | None:
    """The recorded configuration that `--config` names.

    `out` is not taken from it, so that no run is overwritten.
    """
    row = COMMANDS.get(arguments[0]) if arguments else None
    if row is None or not row.replays:
        return None
    for i, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if flag == "--config":
            path = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
            return _replayed(row.config, path)
    return None


def _replayed(kind: type, path: str) -> Attribute:
    import tyro

    recorded = from_run(Path(path))
    needed = [f.name for f in fields(Attribute) if f.default is MISSING]
    missing = [name for name in needed if name not in recorded]
    if missing:
        what = f"records no {missing[0]}"
        raise InputError(path, what, "was it written by another version?")
    needs_out = any(f.name == "out" and f.default is MISSING for f in fields(kind))
    if not needs_out:
        recorded.pop("out", None)
    default = kind(**recorded)
    if needs_out:  # frozen; the parser demands the option in its place
        object.__setattr__(default, "out", tyro.MISSING)
    return default


def _run(config: Any) -> None:
    from rich.console import Console

    # Programs are compiled once per machine; JAX reads this when it is first imported.
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    compiled = home / "smda_jax" / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    # That there is no torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    row = _row(config)
    assert row is not None
    row.run(config, Console())


if __name__ == "__main__":
    main()
