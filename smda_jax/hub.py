"""Downloads from the Hugging Face Hub, with one line for whatever goes wrong."""

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from smda_jax.errors import InputError


def download(
    repo: str, patterns: Sequence[str], *, kind: str = "model", source: object = None
) -> Path:
    """The local copy of a repository's files that match `patterns`.

    Args:
        repo: `owner/name`.
        patterns: file names with wildcards.
        kind: model or dataset.
        source: what the user wrote, to be named in the error.

    Raises:
        InputError: the repository cannot be fetched.
    """
    try:
        folder = huggingface_hub.snapshot_download(
            repo, repo_type=kind, allow_patterns=list(patterns)
        )
    except Exception as error:  # the hub raises many types: offline, gated, unknown, malformed id
        first = str(error).strip().splitlines()[0]
        what = (
            "not fetched from the Hub"
            if kind == "dataset"
            else "not a folder, and not fetched from the Hub"
        )
        raise InputError(
            source or repo, f"{what}: {first}", "check id, access and network"
        ) from error
    return Path(folder)


def folder_or_download(source: str, patterns: Sequence[str], example: str) -> Path:
    """A local folder, or the local copy of a Hub repository (`owner/name`, with or without `hub:`).

    Raises:
        InputError: neither a folder nor a repository that can be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    repo = source.removeprefix("hub:")
    if folder.exists() or repo.count("/") > 1 or repo.startswith((".", "/", "~")):
        raise InputError(source, "no such folder", f"give a folder or a Hub id such as {example}")
    return download(repo, patterns, source=source)
