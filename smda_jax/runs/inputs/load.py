"""What a configuration names, read and checked before anything is written."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from smda_jax.data import features as feature_specs
from smda_jax.data.chat import Chat
from smda_jax.data.losses import make_loss
from smda_jax.data.overlap import apply_overlap
from smda_jax.data.records import Pairs, Prompts, load_pairs, load_prompts
from smda_jax.data.sources import local_files
from smda_jax.data.tokenised import PairTokens, PromptTokens
from smda_jax.engines.offers import OFFERS
from smda_jax.errors import InputError
from smda_jax.model import adapters, checkpoint
from smda_jax.model.moved import Moved, everything, moved_by
from smda_jax.policy.selection import check_subset_names
from smda_jax.reading.behaviours import Asking, columns_of, make_behaviour
from smda_jax.reading.evaluation import Question
from smda_jax.reading.network import Model, load_model, load_shapes
from smda_jax.reading.site import resolve_site
from smda_jax.reading.tokens import tokenise_pairs, tokenise_prompts
from smda_jax.runs.config import Attribute
from smda_jax.runs.folder.store import hash_path
from smda_jax.runs.inputs.polarity import Polarity, polarity, said_of
from smda_jax.runs.inputs.texts import check_texts, say, warn
from smda_jax.sae.formats import SAE
from smda_jax.sae.formats import load as load_sae


@dataclass(frozen=True)
class Inputs:
    """Everything that a run reads.

    `config` says everything, the learning rate of a recipe for so many pairs too. `base` is the
    model that pairs are stepped on, `question` of that which prompts are read at: the same but for
    `--trained`. `overlapping` counts evaluation prompts that are also trained on.
    """

    config: Attribute
    question: Question
    base: Model
    sae: SAE
    prompts: Prompts
    prompt_tokens: list[PromptTokens]
    pairs: Pairs
    pair_tokens: list[PairTokens]
    curvature_tokens: list[PairTokens] | None
    moved: Moved | None
    polarity: Polarity
    overlapping: int
    labels: dict[int, str]
    hashes: dict[str, str]


def hash_data(source: str | tuple[str, ...]) -> str:
    """Of the content of data files."""
    several = source if isinstance(source, tuple) else (source,)
    hashes = [hash_path(path) for one in several for path in local_files(one)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def ignored(sae: SAE, encoder: str) -> list[str]:
    """What the paper's encoder leaves out of an SAE that changes its input."""
    if encoder != "relu_proxy" or sae.encoder.normalisation == "none":
        return []
    how = sae.encoder.normalisation
    return [f"--encoder relu_proxy leaves out the {how} of its input; native does not"]


def load_inputs(config: Attribute, console: Console, *, weights: bool = True) -> Inputs:
    """Reads and checks every input; cheap checks come before the weights, which may be left out
    (their shapes are not).

    Raises:
        InputError: one of them cannot be used, or they do not fit together.
    """

    config.check()
    asked_config, config = config, config.settled()
    step = config.step
    options = config.behaviour_options()
    asked = feature_specs.parse(config.features)
    reading = config.read_options()
    prompts = load_prompts(config.eval, columns_of(config.behaviour, options), reading)
    pairs = load_pairs(config.pairs, step.loss, reading)
    reading.refuse_unused(prompts.used, pairs.used)
    for data in (prompts, pairs):
        if data.said:
            say(console, f"{data.source}: {data.said}")
    labels = feature_specs.read_labels(config.feature_labels) if config.feature_labels else {}
    prompts, pairs, overlapping = apply_overlap(prompts, pairs, config.on_overlap)
    if overlapping:
        dropped = {"drop": "left out", "drop-pairs": "their pairs are left out"}
        done = dropped.get(config.on_overlap, "kept")
        warn(console, f"{overlapping} evaluation prompts are also trained on, and {done}")
    check_subset_names(config.subset, len(prompts))
    how = {"allow_pickle": config.allow_pickle, "normalise": config.normalise_activations}
    sae = load_sae(config.sae, **how)
    for note in (*sae.notes, *ignored(sae, config.encoder)):
        warn(console, f"{config.sae}: {note}")
    folder = checkpoint.fetch(config.model)
    if not config.adapter and (folder / adapters.CONFIG).is_file():
        warn(console, f"an adapter lies beside the model and is left out: --adapter {folder}")
    site = resolve_site(sae, checkpoint.read_config(folder), config.layer, config.layers)
    if isinstance(asked, list):
        feature_specs.check(asked, sae.features)
    if config.layer is not None and sae.layer not in (None, config.layer):
        warn(console, f"--layer {config.layer} overrides layer {sae.layer} of {config.sae}")
    asked_engine = OFFERS.get(config.engine)
    true_step = asked_engine is not None and not asked_engine.first_order
    if true_step and config.dtype != "float64":
        warn(console, "a true step is a small difference of two passes: use --dtype float64")
    load = load_model if weights else load_shapes
    chat = Chat(folder, config.chat_date, config.read_at)
    say(console, chat.describe())
    for note in chat.notes:
        warn(console, note)
    check_texts(chat, prompts, pairs, console)
    model = load(folder, config.dtype, chat=chat, cache=config.cache, adapter=config.adapter)
    moved = moved_by(model.config, config.moving())
    read = model if config.trained is None else _trained(config, folder, model, load)
    asking = Asking(read, prompts, site, options)
    behaviour = make_behaviour(config.behaviour, asking)
    prompt_tokens = tokenise_prompts(read, prompts, behaviour, step.max_length)
    loss = make_loss(step.loss, step.loss_scope, step.beta)
    pair_tokens = tokenise_pairs(model, pairs, step.max_length, loss)
    curvature = None
    if config.curvature_data:
        others = load_pairs(config.curvature_data, step.loss, reading)
        curvature = tokenise_pairs(model, others, step.max_length, loss)
    cut = sum(t.truncated for t in pair_tokens)
    if cut:
        warn(console, f"{cut} of {len(pair_tokens)} pairs are cut to {step.max_length} tokens")
    hashes = {
        "model": hash_path(folder),
        "sae": hash_path(Path(sae.source)),
        "eval": hash_data(config.eval),
        "pairs": hash_data(config.pairs),
    }
    if ":" in config.behaviour:
        source = getattr(sys.modules.get(config.behaviour.partition(":")[0]), "__file__", None)
        hashes |= {"behaviour": hash_path(Path(source))} if source else {}
    if config.curvature_data:
        hashes["curvature"] = hash_data(config.curvature_data)
    if config.adapter:
        hashes["adapter"] = hash_path(adapters.fetch(config.adapter))
    if config.trained:
        hashes["trained"] = hash_path(checkpoint.fetch(config.trained))
    if config.direction:
        hashes["direction"] = hash_path(Path(config.direction).expanduser())
    for text in said_of(pairs, pair_tokens, behaviour):
        say(console, text)
    return Inputs(
        config=asked_config.settled(len(pairs)),
        question=Question(read, behaviour, site),
        base=model,
        sae=sae,
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        pairs=pairs,
        pair_tokens=pair_tokens,
        curvature_tokens=curvature,
        moved=None if moved == everything(model.config) else moved,
        polarity=polarity(config.raises, pairs, pair_tokens, behaviour),
        overlapping=overlapping,
        labels=labels,
        hashes=hashes,
    )


def _trained(config: Attribute, folder: Path, model: Model, load: Callable[..., Model]) -> Model:
    """The model that prompts are read at.

    Raises:
        InputError: it is of another shape than the model that pairs are stepped on.
    """
    assert config.trained is not None
    where = checkpoint.fetch(config.trained)
    adapter = (where / adapters.CONFIG).is_file() and not (where / "config.json").is_file()
    how = {"chat": model.chat, "cache": config.cache}
    if adapter:
        found = load(folder, config.dtype, adapter=where, **how)
    else:
        found = load(where, config.dtype, adapter=config.adapter, **how)
    if found.config != model.config:
        what = "is of another shape than --model"
        raise InputError("--trained", what, "what finetune made of it, or its adapter")
    return found
