"""Chat template: from text to the token ids the model is run on."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from smda_jax.errors import InputError

DEFAULT_DATE = "26 Jul 2024"
LossScope = Literal["response", "all"]
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


class PairTokens(NamedTuple):
    """A training example. Tokens from `response` on are predicted under the response-only loss."""

    ids: Sequence[int]
    response: int
    full_length: int

    @property
    def truncated(self) -> bool:
        """Whether `max_length` cut the example."""
        return len(self.ids) < self.full_length


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

    def _render(self, messages: Sequence[dict[str, str]], header: bool) -> list[int]:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=header, date_string=self.date, return_dict=False
        )

    def prompt(self, text: str, max_length: int, where: object = "prompt") -> PromptTokens:
        """Raises InputError: longer than `max_length` tokens, or without an end-of-turn token."""
        ids = self._render([{"role": "user", "content": text}], header=True)
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
        self, prompt: str, response: str, max_length: int, where: object = "pair"
    ) -> PairTokens:
        """A training example, cut after its own end-of-turn and at `max_length` tokens.

        Raises:
            InputError: no token of the response is left, or the template renders the prompt
                differently with an answer.
        """
        user = {"role": "user", "content": prompt}
        head = self._render([user], header=True)
        ids = self._render([user, {"role": "assistant", "content": response}], header=False)
        if ids[: len(head)] != head:
            raise InputError(
                where, "the chat template renders the prompt differently once an answer follows"
            )
        answer = ids[len(head) :]
        if self.end_of_turn in answer:  # some templates write a newline after it
            ids = ids[: len(ids) - answer[::-1].index(self.end_of_turn)]
        if len(head) >= max_length:
            raise InputError(
                where,
                f"prompt alone has {len(head)} tokens, so max_length {max_length} leaves none of "
                "the response",
                "raise --max-length or drop the pair",
            )
        return PairTokens(ids[:max_length], len(head), len(ids))

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
