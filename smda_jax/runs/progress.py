"""A bar of progress with an estimate of what is left."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from smda_jax.reading.network import Progress as Share


@contextmanager
def bar(console: Console, name: str, done: float | int = 0.0) -> Iterator[Share]:
    """Yields what is told the share of the work just finished."""
    columns = (
        TextColumn(name),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=1.0)
        progress.advance(task, done)
        yield lambda share: progress.advance(task, share)
