"""Chat template: from text to the token ids the model is run on."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from smda_jax.data.conversations import Message
from smda_jax.data.losses import Loss, Sft
from smda_jax.errors import InputError

DEFAULT_DATE = "26 Jul 2024"
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end_of_turn|>")


class Asked(NamedTuple):
    """What a behaviour asks of one prompt; of every prompt of a data set in the same shapes.

    Attributes:
        rows: token sequences that are appended, each in a row of its own; one empty one for none.
        positions: how many positions of a row are read, the last token of the prompt first.
        given: what `Behaviour.value` is told of the prompt, by name.
    """

    rows: tuple[tuple[int, ...], ...] = ((),)
    positions: int = 0
    given: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is appended."""
        return max(map(len, self.rows))


class PromptTokens(NamedTuple):
    """A prompt as the model sees it, assistant header included.

    Attributes:
        ids: its tokens.
        read_at: the user turn's last end-of-turn token.
        asked: what the behaviour asks of it.
    """

    ids: list[int]
    read_at: int
    asked: Asked = Asked()

    @property
    def length(self) -> int:
        """Tokens with the longest sequence that is appended."""
        return len(self.ids) + self.asked.longest


class RowTokens(NamedTuple):
    """A rendered conversation.

    Attributes:
        ids: its tokens.
        turns: (start, stop, weight) of each answer that is trained on, its end-of-turn included.
        full_length: tokens before it was cut.
    """

    ids: Sequence[int]
    turns: tuple[tuple[int, int, float], ...]
    full_length: int

    @property
    def truncated(self) -> bool:
        """Whether `max_length` cut it."""
        return len(self.ids) < self.full_length

    @property
    def response(self) -> int:
        """Where the last answer begins."""
        return self.turns[-1][0]


class PairTokens(NamedTuple):
    """A training example.

    Attributes:
        rows: what it is made of: one conversation, or one for the chosen and the rejected answer.
        loss: what is made of them.
    """

    rows: tuple[RowTokens, ...]
    loss: Loss = Sft()

    @classmethod
    def of(cls, ids: Sequence[int], response: int) -> "PairTokens":
        """A plain pair, of which the tokens from `response` on are trained on."""
        return cls((RowTokens(ids, ((response, len(ids), 1.0),), len(ids)),))

    @property
    def ids(self) -> Sequence[int]:
        """Tokens of the first row."""
        return self.rows[0].ids

    @property
    def response(self) -> int:
        """Where its last answer begins."""
        return self.rows[0].response

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in self.rows)

    @property
    def total(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def truncated(self) -> bool:
        """Whether `max_length` cut one of them."""
        return any(row.truncated for row in self.rows)


class Chat:
    """A tokenizer with its own chat template, the date that it prints pinned.

    Llama 3 templates write today's date into every prompt unless told otherwise; two runs on
    different days would then measure two different models.
    """

    def __init__(self, folder: str | Path, date: str = DEFAULT_DATE):
        """Raises InputError: no tokenizer, no chat template, or no end-of-turn token."""
        # A custom tokenizer class would have to run the checkpoint's code: trust_remote_code stays
        # off.
        from transformers import AutoTokenizer

        self.folder, self.date = Path(folder), date
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                self.folder, trust_remote_code=False
            )
        except (
            Exception
        ) as error:  # transformers raises many types for a missing or broken tokenizer
            first = str(error).strip().splitlines()[0]
            raise InputError(
                folder, f"no tokenizer can be read: {first}", "the folder needs tokenizer.json"
            ) from error
        if not self.tokenizer.chat_template:
            raise InputError(
                folder,
                "the tokenizer has no chat template",
                "use the instruct checkpoint's tokenizer",
            )
        vocabulary = self.tokenizer.get_vocab()
        end = next((t for t in _END_OF_TURN if t in vocabulary), self.tokenizer.eos_token)
        if end is None:
            raise InputError(
                folder,
                "the tokenizer has no end-of-turn token",
                f"expected one of {', '.join(_END_OF_TURN)}",
            )
        self.end_of_turn: int = vocabulary[end]

    def _render(self, messages: Sequence[Message], header: bool, where: object) -> list[int]:
        from jinja2 import TemplateError

        said = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                said, add_generation_prompt=header, date_string=self.date, return_dict=False
            )
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            what = f"the chat template does not take the turns {roles}: {error}"
            raise InputError(where, what, "leave that turn out") from error

    def prompt(
        self,
        text: str,
        max_length: int,
        where: object = "prompt",
        history: Sequence[Message] = (),
    ) -> PromptTokens:
        """A prompt, after the turns of `history`.

        Raises:
            InputError: longer than `max_length` tokens, or without an end-of-turn token.
        """
        ids = self._render([*history, Message("user", text)], True, where)
        if len(ids) > max_length:
            raise InputError(
                where,
                f"prompt has {len(ids)} tokens, over max_length {max_length}",
                "raise --max-length or drop it",
            )
        if self.end_of_turn not in ids:
            raise InputError(
                where, "the chat template writes no end-of-turn token after the user turn"
            )
        return PromptTokens(ids, len(ids) - 1 - ids[::-1].index(self.end_of_turn))

    def pair(
        self,
        prompt: str,
        response: str,
        max_length: int,
        where: object = "pair",
        history: Sequence[Message] = (),
    ) -> RowTokens:
        """A training example, cut after its own end-of-turn and at `max_length` tokens.

        Answers in `history` are trained on too, each with its weight.

        Raises:
            InputError: no token of the response is left, or the template renders a turn
                differently once others follow.
        """
        messages = [*history, Message("user", prompt), Message("assistant", response)]
        whole, turns = self._render(messages, False, where), []
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            last, head = i + 1 == len(messages), self._render(messages[:i], True, where)
            upto = whole if last else self._render(messages[: i + 1], False, where)
            if whole[: len(head)] != head or whole[: len(upto)] != upto:
                one = "the prompt" if last else f"turn {i + 1}"
                after = "an answer follows" if last else "other turns follow"
                what = f"the chat template renders {one} differently once {after}"
                raise InputError(where, what)
            answer = upto[len(head) :]
            stop = len(upto)
            if self.end_of_turn in answer:  # some templates write a newline after it
                stop -= answer[::-1].index(self.end_of_turn)
            turns.append((len(head), stop, message.weight))
        end = turns[-1][1]
        kept = [
            (start, min(stop, max_length), weight)
            for start, stop, weight in turns
            if start < max_length and weight
        ]
        if turns[-1][0] >= max_length:  # the response is what the pair is about
            what = (
                f"prompt alone has {turns[-1][0]} tokens, so max_length {max_length} leaves none "
                "of the response"
            )
            raise InputError(where, what, "raise --max-length or drop the pair")
        return RowTokens(whole[:end][:max_length], tuple(kept), end)

    def answer(self, prompt: str, text: str, where: object = "answer") -> list[int]:
        """Tokens of a text as they stand where it is the answer, its end-of-turn left out.

        Raises:
            InputError: as of `pair`.
        """
        whole = self.pair(prompt, text, sys.maxsize, where)
        ids = list(whole.ids[whole.response :])
        return ids[:-1] if ids[-1:] == [self.end_of_turn] else ids

    def control_tokens(self, text: str) -> list[str]:
        """Special tokens spelled out in a text: the tokenizer reads them as control tokens,
        wherever they come from."""
        return [token for token in self.tokenizer.all_special_tokens if token in text]

    def encode(self, text: str) -> list[int]:
        """Plain token ids, nothing added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(list(ids))
