"""A model and prompts, read and checked."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from smda_jax.data.chat import Chat
from smda_jax.data.records import Prompts, load_prompts
from smda_jax.data.tokenised import PromptTokens
from smda_jax.model import adapters, checkpoint
from smda_jax.reading.behaviours import Asking, columns_of, make_behaviour
from smda_jax.reading.behaviours.contract import Behaviour
from smda_jax.reading.network import Model, load_model
from smda_jax.reading.site import Site
from smda_jax.reading.tokens import tokenise_prompts
from smda_jax.runs.evaluation.config import Evaluate
from smda_jax.runs.folder.store import hash_path
from smda_jax.runs.inputs.load import hash_data
from smda_jax.runs.inputs.texts import check_texts, say, warn


@dataclass(frozen=True)
class Asked:
    """A model with its prompts.

    Attributes:
        model: that is asked.
        behaviour: that is looked for.
        prompts: the prompts.
        tokens: of them.
        site: a stream that is read beside, which no figure looks at.
        hashes: of the files.
    """

    model: Model
    behaviour: Behaviour
    prompts: Prompts
    tokens: list[PromptTokens]
    site: Site
    hashes: dict[str, str]


def load_asked(c: Evaluate, console: Console) -> Asked:
    """Reads and checks model and prompts.

    Raises:
        InputError: one of them cannot be used, or they do not fit together.
    """
    options, reading = c.behaviour_options(), c.read_options()
    prompts = load_prompts(c.eval, columns_of(c.behaviour, options), reading)
    reading.refuse_unused(prompts.used)
    if prompts.said:
        say(console, f"{prompts.source}: {prompts.said}")
    folder = checkpoint.fetch(c.model)
    chat = Chat(folder, c.chat_date, c.read_at)
    for note in chat.notes:
        warn(console, note)
    check_texts(chat, prompts, None, console)
    model = load_model(folder, c.dtype, chat=chat, adapter=c.adapter)
    site = Site("resid_post", model.config.layers - 1)
    behaviour = make_behaviour(c.behaviour, Asking(model, prompts, site, options))
    hashes = {"model": hash_path(folder), "eval": hash_data(c.eval)}
    if c.adapter:
        hashes["adapter"] = hash_path(adapters.fetch(c.adapter))
    if c.direction:
        hashes["direction"] = hash_path(Path(c.direction).expanduser())
    tokens = tokenise_prompts(model, prompts, behaviour, c.max_length)
    return Asked(model, behaviour, prompts, tokens, site, hashes)
