"""Chats: from text to the token ids the model is run on."""

import json
import sys
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from smda_jax.data.conversations import Message
from smda_jax.data.rendering import Rendered, Span, Template
from smda_jax.data.tokenised import PromptTokens, RowTokens, Tokens
from smda_jax.data.tokenizer import load_tokenizer
from smda_jax.errors import InputError

DEFAULT_DATE = "26 Jul 2024"
_PROBE = "Well"  # an answer, where only what is before it matters
# What templates write that is a token wherever it was trained with.
_MARKERS = (
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
)
READ_AT = ("auto", "end-of-turn", "last-user-token", "last-token")


class Chat:
    """A tokenizer with its own chat template, the date that it prints pinned.

    Llama 3 templates write today's date into every prompt unless told otherwise; two runs on
    different days would then measure two different models.

    A prompt is everything before the answer in a rendering that has one. Where the template has a
    generation prompt, that ends in the same words; where the two differ, what answers are trained
    to follow is taken. Tokens are those of the whole rendering: an answer begins with the first
    token that holds a character of it.

    Attributes:
        end_of_turn: the special token that ends the user's turn and an answer alike; None where
            the template writes none.
        read_at: the token that is read, by its kind or its id.
        notes: what is unusual about the template, for the terminal.
    """

    def __init__(self, folder: str | Path, date: str = DEFAULT_DATE, read_at: str = "auto"):
        """Reads a tokenizer and asks its template.

        Args:
            folder: of the tokenizer.
            date: that the template prints.
            read_at: the token that the SAE reads: `end-of-turn` of the user's turn;
                `last-user-token`, of what the user says; `last-token`, before the answer; a
                token; or `auto`, the first of these where there is one, else the third.

        Raises:
            InputError: no tokenizer, no chat template, one that takes no plain conversation or
                leaves out what is said, several begin-of-text tokens, or no such token to read.
        """
        self.folder, self.date = Path(folder), date
        self.tokenizer = load_tokenizer(self.folder)
        self.template = Template(self.tokenizer, date, self.folder)
        self.notes: list[str] = []
        # Tokens that a text is cut at: named in the config, or added to the vocabulary.
        added = self.tokenizer.added_tokens_decoder
        self._cuts = {*self.tokenizer.all_special_ids, *added}
        names = {token.content for token in added.values() if token.special}
        self._controls = sorted({*self.tokenizer.all_special_tokens, *names})
        self._lead: list[int] = []
        self._space = 0
        self._file: Any = None
        self._settle_beginning()
        self.end_of_turn = self._find_end_of_turn()
        self._compare_header()
        text = self._probed().text
        for marker in _MARKERS:
            if marker in text and marker not in self.tokenizer.get_vocab():
                note = f"{marker} is no token of this tokenizer: is it another model's template?"
                self.notes.append(note)
        if self.splits_otherwise(text):
            what = f"its class {self.kind} splits the template's own words otherwise than"
            self.notes.append(f"{what} tokenizer.json itself: which one trained the model?")
        self.read_at = self._resolve(read_at)

    @property
    def kind(self) -> str:
        """The tokenizer's class, as transformers takes it from `tokenizer_config.json`."""
        return type(self.tokenizer).__name__

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer: of the template's turn, of the tokenizer, and what
        `generation_config.json` says."""
        found: list[Any] = [self.end_of_turn, self.tokenizer.eos_token_id]
        path = self.folder / "generation_config.json"
        if path.is_file():
            try:
                said = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            except (OSError, ValueError, AttributeError) as error:
                raise InputError(path, f"cannot be read: {error}") from error
            found += said if isinstance(said, list) else [said]
        return frozenset(token for token in found if isinstance(token, int))

    def _settle_beginning(self) -> None:
        """Exactly one begin-of-text token, where the tokenizer has one to add."""
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return
        ids = self._tokens(self._probed().text).ids
        if ids[:2] == [bos, bos]:
            what = "the chat template begins with two begin-of-text tokens"
            raise InputError(self.folder, what, "take one out of the template")
        if ids[:1] != [bos] and self.tokenizer("a").input_ids[:1] == [bos]:
            self._lead = [bos]
            token = self.tokenizer.bos_token
            self.notes.append(f"{token} is put before every text: the template writes none")

    def _find_end_of_turn(self) -> int | None:
        rendered = self._probed()
        tokens = self._tokens(rendered.text)
        user, answer = (tokens.special(span.stop) for span in rendered.spans)
        if user is None or answer is None or tokens.ids[user] != tokens.ids[answer]:
            return None
        return tokens.ids[user] if user < self._start(tokens, rendered.spans[1]) else None

    def _compare_header(self) -> None:
        """Says where the generation prompt is not what answers follow."""
        rendered = self._probed()
        follows = rendered.text[: rendered.spans[1].start]
        user = [Message("user", rendered.text[slice(*rendered.spans[0])])]
        header = self.template.words(user, header=True, where=self.folder)
        if header != follows:  # a space before every answer is the answer's to predict
            self._space = len(follows) - len(follows.rstrip(" "))
        if header.rstrip() == follows.rstrip():
            return
        own = follows[rendered.spans[0].stop :]
        if header == self.template.words(user, header=False, where=self.folder):
            what = "the template has no generation prompt"
        else:
            what = f"the generation prompt ends in {header[rendered.spans[0].stop :]!r}"
        self.notes.append(f"{what}; answers are asked for where they are trained, after {own!r}")

    def _resolve(self, read_at: str) -> str | int:
        if read_at == "auto":
            return "end-of-turn" if self.end_of_turn is not None else "last-token"
        if read_at == "end-of-turn" and self.end_of_turn is None:
            what = "the chat template writes no end-of-turn token after the user's turn"
            raise InputError("--read-at", what, "last-token, last-user-token or a token")
        if read_at in READ_AT:
            return read_at
        vocabulary, ids = self.tokenizer.get_vocab(), self.encode(read_at)
        if read_at not in vocabulary and len(ids) != 1:
            what = f"{read_at!r} is no token of the tokenizer"
            raise InputError("--read-at", what, f"{', '.join(READ_AT)} or a token")
        token = vocabulary.get(read_at, ids[0] if ids else 0)
        rendered = self._probed()
        tokens = self._tokens(rendered.text)
        before = tokens.ids[: self._start(tokens, rendered.spans[1])]
        if token not in before[tokens.after(rendered.spans[0].stop) :]:
            shown = self.tokenizer.convert_ids_to_tokens(before)[-6:]
            what = f"{read_at!r} does not stand between the user's text and the answer"
            raise InputError("--read-at", what, f"the last tokens there are {' '.join(shown)}")
        return token

    def _probed(self) -> Rendered:
        said = [Message("user", "How are you?"), Message("assistant", _PROBE)]
        return self.template.render(said, self.folder)

    def _tokens(self, text: str) -> Tokens:
        how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        try:
            found = self.tokenizer(text, **how)
        except Exception as error:  # a class that does not fit its file fails as it likes
            what = f"its tokenizer {self.kind} fails: {error}"
            remedy = "does tokenizer_class fit tokenizer.json?"
            raise InputError(self.folder, what, remedy) from error
        lead = len(self._lead)
        ids = [*self._lead, *found["input_ids"]]
        return Tokens(ids, [(0, 0)] * lead + found["offset_mapping"], self._cuts)

    def _start(self, tokens: Tokens, span: Span) -> int:
        """The first token that holds a character of an answer, or of the space before it."""
        return tokens.first(span.start - self._space)

    def describe(self) -> str:
        """Where prompts are read, and what answers follow."""
        rendered = self._probed()
        tokens = self._tokens(rendered.text)
        token = self.decode([tokens.ids[self._place(tokens, rendered, 0, self.folder)]])
        kinds = {"end-of-turn": "the end of the user's turn", "last-token": "before the answer"}
        kinds["last-user-token"] = "the last of the user's text, such as"
        kind = kinds.get(str(self.read_at), "as --read-at says")
        follows = rendered.text[rendered.spans[0].stop : rendered.spans[1].start]
        return f"prompts are read at {token!r} ({kind}); answers follow {follows!r}"

    def _place(self, tokens: Tokens, rendered: Rendered, turn: int, where: object) -> int:
        """The token that is read, of a rendering whose message `turn` is the user's last.

        Raises:
            InputError: it does not stand behind this text: it is part of a longer token.
        """
        stop = self._start(tokens, rendered.spans[turn + 1])
        behind = tokens.after(rendered.spans[turn].stop)
        if self.read_at == "last-token":
            return stop - 1
        if self.read_at == "last-user-token":
            return behind - 1
        token = self.end_of_turn if self.read_at == "end-of-turn" else self.read_at
        found = [i for i in range(behind, stop) if tokens.ids[i] == token]
        if not found:
            what = "the token that --read-at names is part of a longer one here"
            raise InputError(where, what, "--read-at last-token")
        return found[0] if self.read_at == "end-of-turn" else found[-1]

    def prompt(
        self,
        text: str,
        max_length: int,
        where: object = "prompt",
        history: Sequence[Message] = (),
    ) -> PromptTokens:
        """A prompt, after the turns of `history`.

        Raises:
            InputError: longer than `max_length` tokens, or the template leaves out what is said.
        """
        said = [*history, Message("user", text), Message("assistant", _PROBE)]
        rendered = self.template.render(said, where)
        tokens = self._tokens(rendered.text)
        place = self._place(tokens, rendered, len(history), where)
        ids = tokens.ids[: self._start(tokens, rendered.spans[-1])]
        if len(ids) > max_length:
            raise InputError(
                where,
                f"prompt has {len(ids)} tokens, over max_length {max_length}",
                "raise --max-length or drop it",
            )
        return PromptTokens(ids, place)

    def pair(
        self,
        prompt: str,
        response: str,
        max_length: int,
        where: object = "pair",
        history: Sequence[Message] = (),
        weight: float = 1.0,
    ) -> RowTokens:
        """A training example, cut after its own end-of-turn and at `max_length` tokens.

        Answers in `history` are trained on too, each with its weight; `weight` is the response's.

        Raises:
            InputError: no token of the response is left, or the template leaves out what is said.
        """
        messages = [*history, Message("user", prompt), Message("assistant", response, weight)]
        rendered = self.template.render(messages, where)
        tokens = self._tokens(rendered.text)
        turns = []
        for message, span in zip(messages, rendered.spans, strict=True):
            if message.role == "assistant":
                start = self._start(tokens, span)
                turns.append((start, self._end_of(tokens, span, rendered), message.weight))
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
        return RowTokens(tokens.ids[:end][:max_length], tuple(kept), end)

    def _end_of(self, tokens: Tokens, span: Span, rendered: Rendered) -> int:
        """Where an answer ends: with the special token that ends its turn, else with its text."""
        later = [other.start for other in rendered.spans if other.start > span.stop]
        special = tokens.special(span.stop)
        limit = min(later, default=len(rendered.text) + 1)
        if special is not None and tokens.spans[special][1] <= limit:
            return special + 1
        return tokens.after(span.stop if later else len(rendered.text.rstrip()))

    def answer(self, prompt: str, text: str, where: object = "answer") -> list[int]:
        """Tokens of a text as they stand where it is the answer.

        Raises:
            InputError: as of `pair`.
        """
        said = [Message("user", prompt), Message("assistant", text)]
        rendered = self.template.render(said, where)
        tokens = self._tokens(rendered.text)
        span = rendered.spans[-1]
        start, stop = self._start(tokens, span), tokens.after(span.stop)
        head = self.prompt(prompt, sys.maxsize, where).ids
        if tokens.ids[:start] != head:
            what = f"{text!r} is one token with the end of the template's header"
            raise InputError(where, what, "leave out what it begins with")
        return tokens.ids[start:stop]

    def beginning(self, text: str, where: object = "targets") -> list[int]:
        """Tokens of a text as they stand where an answer begins with it: tokenizers of the
        SentencePiece kind split it otherwise on its own.

        Raises:
            InputError: the template changes it, or its first token is not of the text alone.
        """
        return self.answer("How are you?", text, where) if text.strip() else []

    def control_tokens(self, text: str) -> list[str]:
        """Special tokens spelled out in a text: the tokenizer reads them as control tokens,
        wherever they come from."""
        return [token for token in self._controls if token in text]

    def splits_otherwise(self, text: str) -> bool:
        """Whether a text is split into other tokens than by tokenizer.json itself: its class, which
        transformers takes, brings rules of its own."""
        path = self.folder / "tokenizer.json"
        if self._file is None and path.exists():
            from tokenizers import Tokenizer

            self._file = Tokenizer.from_file(str(path))
        if self._file is None:
            return False
        return self._file.encode(text, add_special_tokens=False).ids != self.encode(text)

    def loss_of(self, text: str) -> str:
        """What a text becomes on its way to tokens and back; empty where it stays what it is, but
        for spaces around it and equivalent characters of Unicode."""
        back = self.decode(self.encode(text))
        same = _plain(back) == _plain(text)
        return "" if same else back or "nothing"

    def encode(self, text: str) -> list[int]:
        """Plain token ids, nothing added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()
