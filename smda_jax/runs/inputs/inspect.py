"""`smda-jax inspect`: what files are, and whether they fit together."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from smda_jax.data.chat import Chat
from smda_jax.data.records import (
    Pairs,
    Prompts,
    load_pairs,
    load_prompts,
    overlap,
)
from smda_jax.data.tables import SUFFIXES, read_table
from smda_jax.errors import InputError
from smda_jax.model import adapters, checkpoint
from smda_jax.model.config import ModelConfig
from smda_jax.model.params import abstract_params
from smda_jax.reading.behaviours.probe import read_direction
from smda_jax.reading.site import resolve_site
from smda_jax.runs.config import Inspect
from smda_jax.sae.formats import SAE, is_sae
from smda_jax.sae.formats import load as load_sae

_MODEL_FILES = ("config.json", "cfg.json", "tokenizer*", "*.jinja")


def inspect(command: Inspect, console: Console) -> None:
    """Describes every path, then says what fits.

    Raises:
        InputError: one of them cannot be read, or two of them do not fit.
    """
    if not command.paths:
        raise InputError(
            "inspect", "names nothing to look at", "give a checkpoint, SAE, data file or run folder"
        )
    found: dict[type, tuple[str, Any]] = {}
    for path in command.paths:
        thing, text = _describe(path, command)
        console.print(f"{path}: {text}", soft_wrap=True, markup=False, highlight=False)
        if thing is not None:
            found[type(thing)] = (path, thing)
    if ModelConfig in found and SAE in found:
        (_, config), (_, sae) = found[ModelConfig], found[SAE]
        named = sae.layer is not None
        site = resolve_site(sae, config, None if named else 0)
        layer = f"layer {site.layer}" if named else "a layer that attribute needs (--layer)"
        console.print(
            f"fits: the SAE reads {site.stream} of {layer} of {config.layers}, width "
            f"{config.hidden}"
        )
    if Prompts in found and Pairs in found:
        (_, prompts), (_, pairs) = found[Prompts], found[Pairs]
        shared = overlap(prompts, pairs)
        console.print(
            f"fits: {len(shared)} evaluation prompts are also trained on"
            + (", see --on-overlap" if shared else "")
        )


def _describe(path: str, command: Inspect) -> tuple[Any, str]:
    local = Path(path).expanduser()
    if local.name == "run.json" and local.is_file():
        local = local.parent
    if local.suffix == ".json" and local.is_file():
        policy = json.loads(local.read_text())
        if isinstance(policy, dict) and "feature_ids" in policy:
            return None, f"policy: {len(policy['feature_ids'])} features, α {policy.get('alpha')}"
    if (local / "run.json").is_file():
        return None, _describe_run(local)
    if (local / adapters.CONFIG).is_file():
        return None, adapters.describe(local)
    if local.suffix in (".npy", ".safetensors") and local.is_file():
        direction, bias = read_direction(str(local))
        return None, f"direction of width {len(direction)}, bias {bias:g} (--behaviour probe)"
    names_a_folder = ":" in path.removeprefix("hub:") and not path.startswith("hub:")
    if is_sae(local) or (names_a_folder and not local.exists()):
        sae = load_sae(path, allow_pickle=command.allow_pickle)
        where = (
            f"{sae.site} of layer {sae.layer}"
            if sae.layer is not None
            else "a site its config does not name"
        )
        return (
            sae,
            f"SAE ({sae.architecture}): {sae.features} features of width {sae.hidden}, reads "
            f"{where}",
        )
    if (local / "config.json").is_file():
        return _describe_model(local)
    if local.suffix in SUFFIXES or path.startswith("hub:"):
        return _describe_data(path)
    if local.exists():
        raise InputError(path, "is neither a checkpoint, an SAE, a data file nor a run folder")
    folder = checkpoint.fetch(path, _MODEL_FILES)
    if (folder / "config.json").is_file():
        return _describe_model(folder)
    return None, "a Hub repository; name the SAE's folder in it"


def _describe_model(folder: Path) -> tuple[ModelConfig, str]:
    config = checkpoint.read_config(folder)
    size = sum(leaf.size for leaf in _leaves(config))
    attention, rope = config.attention, config.kinds[0].rope
    kind = "no" if rope is None else type(rope.kind).__name__.lower()
    text = (
        f"{config.family} checkpoint: {size / 1e6:,.1f} M parameters, {config.layers} layers of "
        f"width {config.hidden}, "
        f"{attention.heads} heads on {attention.kv_heads}, vocabulary {config.vocab}, "
        f"{'tied' if config.tied else 'untied'} embedding, {kind} rope"
    )
    try:
        chat = Chat(folder)
        text += f"; chat template ending turns with {chat.decode([chat.end_of_turn])}"
    except InputError as error:
        text += f"; not usable for chat: {error}"
    return config, text


def _leaves(config: ModelConfig) -> list[Any]:
    import jax

    return jax.tree.leaves(abstract_params(config, "float32"))


def _describe_data(path: str) -> tuple[Any, str]:
    table, _ = read_table(path)
    columns = set(table.column_names)
    preferences = {"chosen", "rejected"} <= columns and "response" not in columns
    if preferences or columns & {"response", "messages"}:
        pairs = load_pairs(path, "dpo" if preferences else "sft")
        kind = "preference" if preferences else "training"
        return pairs, f"{len(pairs)} {kind} pairs: {_counts(pairs.label)}"
    if "prompt" in table.column_names:
        prompts = load_prompts(path)
        return (
            prompts,
            f"{len(prompts)} evaluation prompts: {_counts(prompts.label)}; "
            f"{len(set(prompts.category))} categories",
        )
    return None, f"table of {table.num_rows} rows: {', '.join(table.column_names[:12])}"


def _counts(labels: list[str | None]) -> str:
    return ", ".join(f"{n} {name or 'unlabelled'}" for name, n in Counter(labels).most_common())


def _describe_run(folder: Path) -> str:
    try:
        run = json.loads((folder / "run.json").read_text())
        blocks = (
            len(list((folder / "jacobian").glob("pairs-*")))
            if (folder / "jacobian").is_dir()
            else 0
        )
        return (
            f"run ({run['status']}): engine {run['engine']}, {run['pairs']} pairs on "
            f"{run['prompts']} prompts, "
            f"{blocks} pair blocks done, {run['config']['dtype']} on {run['device']['kind']}"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(folder / "run.json", f"cannot be read: {escape(repr(error))}") from error
