"""Training pairs in the forms that data sets have them: texts, conversations, preferences."""

import math
from typing import Any, NamedTuple

import pyarrow as pa

from smda_jax.data.losses import LossName
from smda_jax.data.tables import texts_of
from smda_jax.errors import InputError

ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """A turn of a conversation; `weight` is that of its tokens in the loss, if it is an answer."""

    role: str
    content: str
    weight: float = 1.0


class Example(NamedTuple):
    """What one pair is made of; see `records.Pairs`."""

    prompt: str
    response: str
    rejected: str | None = None
    history: tuple[Message, ...] = ()

    @property
    def texts(self) -> list[str]:
        """All that it says, which its id is made of."""
        before = [message.content for message in self.history]
        return [*before, self.prompt, self.response, *([self.rejected] if self.rejected else [])]


def read_pairs_of(table: pa.Table, name: str, loss: LossName) -> list[Example]:
    """The pairs of a table, in whichever form it has them.

    Raises:
        InputError: it has none, or turns that are no conversation; names the row.
    """
    columns = table.column_names
    if loss == "dpo":
        return _preferences(table, name)
    if "response" not in columns and "messages" in columns:
        rows = [(v, f"{name}, row {i + 1}") for i, v in enumerate(table["messages"].to_pylist())]
        if not rows:
            raise InputError(name, "has no rows")
        return [_example(conversation(value, where), where) for value, where in rows]
    if "response" not in columns and {"chosen", "rejected"} <= set(columns):
        what = "has no column 'response', but chosen and rejected"
        raise InputError(name, what, "--loss dpo, or rename chosen to response")
    if "response" not in columns:
        what = f"has no column 'response'; its columns are {', '.join(columns[:8])}"
        raise InputError(name, what, "pairs have prompt and response, or messages")
    prompts, responses = texts_of(table, "prompt", name), texts_of(table, "response", name)
    return [Example(*both) for both in zip(prompts, responses, strict=True)]


def conversation(value: Any, where: str) -> tuple[Message, ...]:
    """Turns of a conversation: maybe a system turn, then user and assistant in turn.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, list) or not value:
        raise InputError(where, "messages is no list of turns", "role and content of each turn")
    turns = [_message(turn, i, where) for i, turn in enumerate(value)]
    spoken = turns[1:] if turns[0].role == "system" else turns
    for i, turn in enumerate(spoken):
        expected = ("user", "assistant")[i % 2]
        if turn.role != expected:
            what = f"turn {len(turns) - len(spoken) + i + 1} is of {turn.role}, not of {expected}"
            raise InputError(where, what, "user and assistant in turn, maybe after system")
    return tuple(turns)


def _message(turn: Any, index: int, where: str) -> Message:
    if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
        raise InputError(where, f"turn {index + 1} has no role and content")
    role, content, weight = turn["role"], turn["content"], turn.get("weight")
    if role not in ROLES:
        raise InputError(where, f"turn {index + 1} is of {role!r}", f"one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        what = f"turn {index + 1} is {'empty' if content is None or content == '' else 'no text'}"
        raise InputError(where, what, "a text in every turn")
    try:
        number = 1.0 if weight is None else float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise InputError(where, f"turn {index + 1} has weight {weight!r}", "a number from 0 on")
    return Message(role, content, number)


def _example(turns: tuple[Message, ...], where: str) -> Example:
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise InputError(where, "the conversation does not end with an answer")
    if not turns[-1].weight:
        what = "the last answer has weight 0, and it is what the pair is about"
        raise InputError(where, what, "leave it out")
    return Example(turns[-2].content, turns[-1].content, history=turns[:-2])


def _preferences(table: pa.Table, name: str) -> list[Example]:
    """`chosen` and `rejected`: texts after `prompt`, or conversations with or without it."""
    for column in ("chosen", "rejected"):
        if column not in table.column_names:
            what = f"has no column {column!r}, which --loss dpo needs"
            raise InputError(name, what, "prompt, chosen and rejected, or two conversations")
    chosen, rejected = table["chosen"].to_pylist(), table["rejected"].to_pylist()
    if not chosen:
        raise InputError(name, "has no rows")
    has_prompt = "prompt" in table.column_names
    prompts = table["prompt"].to_pylist() if has_prompt else [None] * len(chosen)
    found = []
    for i, (prompt, good, bad) in enumerate(zip(prompts, chosen, rejected, strict=True)):
        where = f"{name}, row {i + 1}"
        one, other = (_answered(prompt, answer, where) for answer in (good, bad))
        if (one.history, one.prompt) != (other.history, other.prompt):
            raise InputError(where, "chosen and rejected answer different prompts")
        if one.response == other.response:
            raise InputError(where, "chosen and rejected are the same", "drop the pair")
        found.append(one._replace(rejected=other.response))
    return found


def _answered(prompt: Any, answer: Any, where: str) -> Example:
    if isinstance(answer, str) and answer.strip() and isinstance(prompt, str) and prompt.strip():
        return Example(prompt, answer)
    before = prompt if isinstance(prompt, list) else []
    if isinstance(answer, list):
        if isinstance(prompt, str) and len(answer) == 1:
            before = [{"role": "user", "content": prompt}]
        return _example(conversation([*before, *answer], where), where)
    if isinstance(answer, str) and before:
        last = {"role": "assistant", "content": answer}
        return _example(conversation([*before, last], where), where)
    what = "chosen and rejected need a prompt, or have to be conversations"
    raise InputError(where, what, "texts in prompt, chosen and rejected")
