"""`report.html`: one file that needs no network, in which no text of a data set can act."""

import base64
import hashlib
import html
import json
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from smda_jax.files import write_text
from smda_jax.report.data import content, read_run
from smda_jax.report.findings import findings, strongest_gap
from smda_jax.runs.commands import Report
from smda_jax.runtime import processes

# Put together in this order.
MODULES = (
    "base.js",
    "figures.js",
    "parts.js",
    "dialog.js",
    "details.js",
    "overview.js",
    "decision.js",
    "policy.js",
    "effects.js",
    "interference.js",
    "pairs.js",
    "end.js",
)


def report(command: Report, console: Console | None = None) -> Path | None:
    """Draws a run → the page, `report.html` in its folder (of several processes, the first one's).

    Raises:
        InputError: it is no finished run, or cannot be written.
    """
    if not processes.writes():
        return None
    console = console or Console()
    run = read_run(command.run.expanduser())
    target = run.path / "report.html"
    said = findings(run)
    shown = content(run, redact=command.redact) | {
        "findings": said,
        "strongest_gap": strongest_gap(run),
    }
    write_text(target, page(shown))
    console.print(Text("What was found", style="bold"))
    for sentence in said:
        console.print(Text(f"- {sentence}"))
    console.print(f"Page: {escape(str(target))}", soft_wrap=True)
    if command.figures is not None:
        from smda_jax.report.figures import draw

        for name in draw(run, command.figures):
            console.print(f"Figure: {escape(str(name))}", soft_wrap=True)
    return target


def page(shown: dict) -> str:
    """The page of `data.content`, with its findings.

    Data are JSON that no parser takes for markup, and the scripts put them into the page as text.
    The content security policy lets only this page's own scripts run, by their hashes, and nothing
    be fetched.
    """
    own = files("smda_jax.report.page")
    scripts = {
        "page": "\n".join(own.joinpath(name).read_text("utf-8") for name in MODULES),
        "plotly": files("plotly")
        .joinpath("package_data", "plotly.min.js")
        .read_text("utf-8")
        .replace("</script", "<\\/script"),
    }
    hashes = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in scripts.values()
    )
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    text = json.dumps(shown, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    parts = {
        "title": html.escape(f"smda_jax: {shown['name']}"),
        "policy": (
            f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src "
            "data: blob:"
        ),
        "css": own.joinpath("page.css").read_text("utf-8"),
        "content": text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        **scripts,
    }
    whole = own.joinpath("page.html").read_text("utf-8")
    pieces = whole.split("{{")
    return pieces[0] + "".join(
        parts[key] + rest for key, _, rest in (piece.partition("}}") for piece in pieces[1:])
    )
