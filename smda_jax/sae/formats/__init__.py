"""SAE files: one module for each format, and a row in `FORMATS` below."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from smda_jax import hub
from smda_jax.errors import InputError
from smda_jax.sae.formats.common import SAE, parse_hook
from smda_jax.sae.formats.saelens import save_saelens

__all__ = ["FORMATS", "SAE", "Format", "is_sae", "load", "parse_hook", "save_saelens"]


class Format(NamedTuple):
    """A format of SAE files.

    Attributes:
        file: by which a folder of the format is recognised.
        module: of this package, with a function `read(folder, dtype)`.
        pickled: whether reading it runs a pickle, which has to be allowed.
    """

    file: str
    module: str
    pickled: bool = False


FORMATS = (
    Format("sae_weights.safetensors", "saelens"),
    Format("sae.safetensors", "sparsify"),
    Format("ae.pt", "dictionary_learning", pickled=True),
)


def is_sae(folder: Path) -> bool:
    """Whether a folder holds an SAE of a format that is known."""
    return any((folder / form.file).is_file() for form in FORMATS)


def load(source: str | Path, dtype: Any = jnp.float32, *, allow_pickle: bool = False) -> SAE:
    """Reads an SAE from a folder, or from the Hub as `owner/name` or `owner/name:folder`.

    Args:
        source: where.
        dtype: of the encoder; stored precision may differ from tensor to tensor.
        allow_pickle: read formats that are pickles (through torch, weights only).

    Raises:
        InputError: not an SAE, a missing or extra tensor, a wrong shape, or an architecture, site
            or normalisation that is not implemented.
    """
    folder = _fetch(str(source))
    for form in FORMATS:
        if (folder / form.file).exists():
            if form.pickled and not allow_pickle:
                remedy = "--allow-pickle if you trust it"
                raise InputError(
                    folder / form.file, "is a pickle, which is not read unasked", remedy
                )
            read = import_module(f"{__name__}.{form.module}").read
            try:
                return read(folder, dtype)
            except (TypeError, ValueError, AttributeError, LookupError) as error:
                what = f"is not what an SAE of {form.module} looks like: {error!r}"
                raise InputError(folder / form.file, what, "was it saved whole?") from error
    names = [form.file for form in FORMATS]
    what = f"holds no {', '.join(names[:-1])} or {names[-1]}"
    raise InputError(folder, what, "give the SAE's own folder")


def _fetch(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    repo, _, inside = source.removeprefix("hub:").partition(":")
    if folder.exists() or repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        remedy = "give an SAE's folder, or owner/name:folder on the Hub"
        raise InputError(source, "no such folder", remedy)
    names = ("cfg.json", "config.json", *(form.file for form in FORMATS))
    prefix = f"{inside.strip('/')}/" if inside else ""
    return hub.download(repo, [prefix + name for name in names], source=source) / inside
