"""`smda-jax finetune`: a checkpoint and pairs in, a trained checkpoint (or adapter) out."""

import hashlib
import inspect
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float
from rich.console import Console

from smda_jax.data.chat import Chat
from smda_jax.data.records import Pairs, load_pairs
from smda_jax.data.tables import number_of, read_table
from smda_jax.errors import InputError
from smda_jax.files import writing
from smda_jax.model import adapters, checkpoint
from smda_jax.model.moved import Moved, count, everything, moved_by
from smda_jax.model.operations import ADAPTER, ALL
from smda_jax.model.params import Params
from smda_jax.reading.network import Model, load_model
from smda_jax.reading.tokens import tokenise_pairs
from smda_jax.runs.folder.store import RunFolder, hash_path
from smda_jax.runs.inputs.joined import joined
from smda_jax.runs.inputs.load import hash_data
from smda_jax.runs.inputs.texts import check_texts, say, warn
from smda_jax.runs.progress import bar
from smda_jax.runs.tuning.config import Finetune
from smda_jax.runtime.memory import TooLargeError
from smda_jax.training.fine_tuning import State, Training, mean_model
from smda_jax.training.recipe import Order, order_of, random_subsets

RECORD = "finetune.json"
MOMENTS = "second_moments"
SAVE_SECONDS = 60.0  # between states that a killed run continues from
# Beside the weights of a checkpoint: what its tokenizer is made of, and how it generates.
BESIDE = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
NOT_BESIDE = ("config.json", "*.index.json", "adapter_*", RECORD)
# They change no number.
WITHOUT_EFFECT = {"out", "model", "pairs", "adapter", "weights", "save_every"}


@dataclass
class Tuned:
    """What a fine-tuning left.

    Attributes:
        out: folder of the model, or of the adapter.
        losses: before every step, of every run.
    """

    out: Path
    losses: Float[np.ndarray, "run step"]


@dataclass(frozen=True)
class Prepared:
    """What is trained, and where its files come from."""

    training: Training
    pairs: Pairs
    weight: Float[np.ndarray, " pair"] | None
    base: Path
    adapter: Path | None
    hashes: dict[str, str] = field(default_factory=dict)


def finetune(config: Finetune, console: Console | None = None) -> Tuned:
    """Fine-tunes, or goes on fine-tuning.

    Raises:
        InputError: something of the configuration cannot be used; nothing has been written then.
    """
    config.check()
    console = console or Console()
    with tempfile.TemporaryDirectory() as place:
        prepared = prepare(config, Path(place), console)
        folder = RunFolder(config.out, *_record_of(config, prepared), name=RECORD, cache="state")
        if folder.recorded("status") == "complete":
            say(console, "this run is finished: nothing is trained anew")
            if config.halves:
                return Tuned(folder.path, np.zeros((config.halves, 0)))
            losses = read_table(folder.path / "training.parquet").values("loss")
            return Tuned(folder.path, np.array([losses], float))
        try:
            return _train(config, prepared, folder, console)
        except TooLargeError as error:
            what = f"one pair at a time does not fit ({error})"
            remedy = "a smaller --max-length, --dtype bfloat16, or --lora-rank 8"
            raise InputError("memory", what, remedy) from error


def prepare(c: Finetune, place: Path, console: Console) -> Prepared:
    """Reads and checks what is trained; cheap checks come before the weights."""
    pairs = load_pairs(c.pairs, c.loss, c.read_options())
    if pairs.said:
        say(console, f"{pairs.source}: {pairs.said}")
    weight = None if c.weights is None else weights_of(c.weights, pairs.ids)
    if weight is not None and not weight.any():
        raise InputError(c.weights, "gives every pair the weight 0: nothing would be trained")
    base = checkpoint.fetch(c.model)
    shape = checkpoint.read_config(base)
    adapter = None if c.adapter is None else adapters.fetch(c.adapter)
    if c.lora_rank:
        adapter = place / "adapter"
        adapters.write_new(adapter, shape, c.lora_modules, c.lora_rank, c.lora_alpha, c.seed)
    chat = Chat(base, c.chat_date)
    for note in chat.notes:
        warn(console, note)
    check_texts(chat, None, pairs, console)
    dtype = "float64" if c.dtype == "float64" else "float32"
    model = load_model(base, dtype, chat=chat, adapter=adapter)
    moved = moved_by(model.config, c.parameters or ((ADAPTER,) if adapter else (ALL,)))
    if adapter is not None:
        _refuse_base_parameters(moved, model)
    tokens = tokenise_pairs(model, pairs, c.max_length, c.recipe().scored)
    cut = sum(t.truncated for t in tokens)
    if cut:
        warn(console, f"{cut} of {len(tokens)} pairs are cut to {c.max_length} tokens")
    whole = everything(model.config)
    training = Training(model, tokens, c.recipe(), None if moved == whole else moved, c.dtype)
    say(console, f"{count(model.config, moved):,} of {count(model.config, whole):,} numbers move")
    hashes = {"model": hash_path(base), "pairs": hash_data(c.pairs)}
    if c.adapter is not None and adapter is not None:
        hashes["adapter"] = hash_path(adapter)
    if c.weights is not None:
        hashes["weights"] = hash_path(c.weights)
    return Prepared(training, pairs, weight, base, adapter, hashes)


def _refuse_base_parameters(moved: Moved, model: Model) -> None:
    """An adapter is written alone: the weights below it must stay."""
    own = moved_by(model.config, (ADAPTER,))
    outside = moved.embed or moved.final_norm or moved.unembed
    if outside or set(moved.masks) - set(own.masks):
        what = "move weights of the model, and only the adapter is written"
        raise InputError("--parameters", what, "lora, or leave the adapter out")


def weights_of(path: Path, ids: Sequence[str]) -> Float[np.ndarray, " pair"]:
    """Weights of pairs from a table with columns pair_id and weight; of others 1.

    Raises:
        InputError: a row is not usable, or names no pair of these.
    """
    columns = joined(path, ids)
    if "weight" not in columns:
        raise InputError(path, "has no column weight", "columns pair_id and weight")
    found = np.array([1.0 if v is None else number_of(v) for v in columns["weight"]])
    for i in np.flatnonzero(~(np.isfinite(found) & (found >= 0))).tolist():
        what = f"gives pair {ids[i][:12]} the weight {columns['weight'][i]!r}"
        raise InputError(path, what, "a number from 0 on")
    return found


def _record_of(c: Finetune, on: Prepared) -> tuple[str, dict[str, Any]]:
    """(fingerprint, record) of a run: its manifest."""
    essence = {k: v for k, v in c.resolved().items() if k not in WITHOUT_EFFECT}
    names = ("smda-jax", "jax", "optax", "transformers")
    versions = {"python": platform.python_version(), **{n: version(n) for n in names}}
    text = json.dumps([versions["smda-jax"], essence, on.hashes], sort_keys=True)
    device = jax.devices()[0]
    record = {
        "schema_version": 1,
        "config": c.resolved(),
        "recipe": asdict(c.recipe()),
        "steps": c.recipe().steps(len(on.pairs)),
        "inputs": on.hashes,
        "data_sha256": on.hashes["pairs"],
        "pair_ids": on.pairs.ids,
        "pairs_truncated": sum(t.truncated for t in on.training.tokens),
        "versions": versions,
        "device": {"platform": device.platform, "kind": device.device_kind},
    }
    return hashlib.sha256(text.encode()).hexdigest(), record


def _train(c: Finetune, on: Prepared, folder: RunFolder, console: Console) -> Tuned:
    training, rows = on.training, np.arange(len(on.pairs))
    if c.halves:
        folder.begin()
        own = random_subsets(len(rows), c.halves, 0.5, c.seed)
        orders = [order_of(c.recipe(), half, training.scored, on.weight) for half in own]
        with bar(console, f"{c.halves} runs on halves") as progress:
            mean = mean_model(list(training.trained(orders, progress)))
        _write_model(folder.path, on, mean.params)
        folder.finish(halves=[[on.pairs.ids[i] for i in half] for half in own])
        return Tuned(folder.path, np.zeros((c.halves, 0)))
    order = order_of(c.recipe(), rows, training.scored, on.weight)
    state, losses = _steps(c, on, order, folder, console)
    model = next(training.models(state))
    _write_model(folder.path, on, model.params)
    moments = second_moments(c, state, len(order.pair))
    if moments is not None and on.adapter is None:
        raw = checkpoint.read_raw_config(on.base)
        with writing(folder.path):
            checkpoint.save(folder.path / MOMENTS, raw, moments)
    table = {"step": np.arange(len(losses)), "loss": losses, "learning_rate": order.rate}
    folder.write_table("training.parquet", table)
    folder.finish(final_loss=float(losses[-1]), second_moments=moments is not None)
    shutil.rmtree(folder.cache, ignore_errors=True)
    say(console, f"loss {losses[0]:.4f} before the first step, {losses[-1]:.4f} before the last")
    say(console, f"Model: {folder.path}")
    return Tuned(folder.path, losses[None])


def _steps(
    c: Finetune, on: Prepared, order: Order, folder: RunFolder, console: Console
) -> tuple[State, Float[np.ndarray, " step"]]:
    """All steps of the one run, from where a killed one stands."""
    training, total = on.training, len(order.pair)
    folder.begin()
    losses, state, first = np.zeros(total), None, 0
    saved = sorted((p.name for p in folder.cache.glob("step-*") if p.is_dir()), reverse=True)
    if saved:
        content, first = folder.load(saved[0]), int(saved[0].removeprefix("step-"))
        losses[:first] = content.pop("losses")[:first]
        like = jax.eval_shape(lambda: training.begin(1))
        leaves = [jnp.asarray(content[str(i)]) for i in range(len(content))]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        say(console, f"continuing: {first} of {total} steps are done")
    stops = _even(total, c.checkpoints)
    saves = range(first + c.save_every, total, c.save_every) if c.save_every else ()
    kept, latest = saved[:1], [time.monotonic()]
    with bar(console, "steps", first / total) as progress:
        before = [first]

        def each(done: int, state: State, own: Float[np.ndarray, "run step"]) -> None:
            losses[before[0] : done] = own[0]
            if not np.isfinite(own).all():
                remedy = "a smaller --learning-rate, or --dtype float32"
                raise InputError(f"step {done}", "its loss is not finite", remedy)
            progress((done - before[0]) / total)
            before[0] = done
            if done in stops:
                params = next(training.models(state)).params
                _write_model(folder.path / "checkpoints" / f"step-{done:06d}", on, params)
            if done in saves or (not c.save_every and time.monotonic() - latest[0] > SAVE_SECONDS):
                leaves = {str(i): np.asarray(v) for i, v in enumerate(jax.tree.leaves(state))}
                folder.save(f"step-{done:08d}", leaves | {"losses": losses})
                for old in kept:
                    folder.drop(old)
                kept[:], latest[0] = [f"step-{done:08d}"], time.monotonic()

        state = training.run([order], state, first=first, each=each, stops=[*stops, *saves])
    return state, losses


def _even(total: int, count: int) -> list[int]:
    """So many numbers of steps, evenly spaced, the end left out."""
    return sorted({round(total * (i + 1) / (count + 1)) for i in range(count)} - {0, total})


def second_moments(c: Finetune, state: State, steps: int) -> Params | None:
    """Of an optimiser that has them, corrected for their beginning at zero, of the first run."""
    found = optax.tree_utils.tree_get_all_with_path(state.optimiser, "nu")
    own = [value for _, value in found if isinstance(value, Params)]
    if not own:
        return None
    decay = inspect.signature(getattr(optax, c.optimiser)).parameters.get("b2")
    left = 1 - float(decay.default) ** steps if decay is not None else 1.0
    return jax.tree.map(lambda leaf: leaf[0] / left, own[0])


def _write_model(folder: Path, on: Prepared, params: Params) -> None:
    """A checkpoint with its tokenizer, or an adapter."""
    with writing(folder):
        if on.adapter is not None:
            adapters.save(folder, on.adapter, params)
            return
        raw = checkpoint.read_raw_config(on.base)
        name = str(params.embed.dtype)
        own = {k: name for k in ("dtype", "torch_dtype") if k in raw}
        checkpoint.save(folder, raw | (own or {"dtype": name}), params)
        for pattern in BESIDE:
            for file in on.base.glob(pattern):
                if not any(file.match(other) for other in NOT_BESIDE):
                    shutil.copyfile(file, folder / file.name)
