"""The command `smda-jax`. Parses, dispatches and reports errors; heavy imports wait until a command is known."""

import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

from smda_jax.errors import InputError
from smda_jax.runs.config import Attribute, Demo, Inspect, Plan, Report, Sweep, Verify, from_run


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; exit status 2 for input that cannot be used, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command: Any = None
    try:
        command = _parse(arguments)
        _run(command)
    except InputError as error:
        print(f"smda-jax: error: {error}", file=sys.stderr)
        _leave(command, 2)
    except KeyboardInterrupt:
        kept = ": finished blocks are kept, the same command continues" if isinstance(command, Attribute | Demo | Sweep) else ""
        print(f"\nsmda-jax: interrupted{kept}", file=sys.stderr)
        _leave(command, 130)


def _leave(command: Any, status: int) -> None:
    if getattr(command, "distributed", False):
        from smda_jax.model.mesh import leave

        leave(status)
    sys.exit(status)


def _parse(arguments: list[str]) -> Any:
    import tyro

    default = _from_config(arguments)
    options: dict[str, Any] = {} if default is None else {arguments[0]: {"default": default}}
    attribute, plan = (tyro.conf.subcommand(name, **options.get(name, {})) for name in ("attribute", "plan"))
    commands = (
        Annotated[Attribute, attribute]  # type: ignore[valid-type]
        | Annotated[Plan, plan]  # type: ignore[valid-type]
        | Annotated[Sweep, tyro.conf.subcommand("sweep")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    )
    return tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[commands],  # type: ignore[valid-type]
        prog="smda-jax",
        description="Which training pairs shape a model's behaviour, and through which features.",
        args=arguments or ["--help"],
    )


def _from_config(arguments: list[str]) -> Attribute | None:
    """The recorded configuration that `--config` names; `out` is not taken from it, so that no run is overwritten."""
    if arguments[:1] not in (["attribute"], ["plan"]):
        return None
    for i, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if flag == "--config":
            path = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
            import tyro

            recorded = from_run(Path(path))
            required = [f.name for f in fields(Attribute) if f.default is MISSING and f.name not in recorded]
            if required:
                raise InputError(path, f"records no {required[0]}", "was it written by another version?")
            if arguments[0] == "plan":
                return Plan(**{name: value for name, value in recorded.items() if name != "out"})
            default = Attribute(**recorded)
            object.__setattr__(default, "out", tyro.MISSING)  # frozen; the parser demands the option in its place
            return default
    return None


def _run(command: Any) -> None:
    from rich.console import Console

    # Programs are compiled once per machine; JAX reads this when it is first imported.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smda_jax" / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch, which nothing here needs
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    console = Console()
    if isinstance(command, Inspect):
        from smda_jax.runs.inspect import inspect

        inspect(command, console)
        return
    if isinstance(command, Plan):
        from smda_jax.runs.planning import print_plan

        print_plan(command, console)
        return
    if isinstance(command, Sweep):
        from smda_jax.runs.sweep import show, sweep

        if command.show:
            show(command.run, console)
        else:
            sweep(command, console)
        return
    from smda_jax.report.page import report

    if isinstance(command, Report):
        report(command, console)
        return
    if isinstance(command, Verify):
        from smda_jax.runs.verify import verify

        verify(command, console)
        report(Report(run=command.run), console)
        return
    from smda_jax.runs.attribute import attribute

    config = command.attribute() if isinstance(command, Demo) else command
    attribute(config, console)
    report(Report(run=config.out), console)


if __name__ == "__main__":
    main()
