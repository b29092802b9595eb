"""Greedy answers against transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from support import EMBEDDED, PROMPTS

from smda_jax.data.chat import Chat
from smda_jax.data.tokenised import PromptTokens
from smda_jax.reading.generation import answers
from smda_jax.reading.network import load_model


@pytest.mark.parametrize(
    "kind",
    [
        "mistral_window",
        "gemma3",
        "phi3",
        *(
            pytest.param(kind, marks=pytest.mark.exhaustive)
            for kind in ("llama3_tied_gqa", "gemma2", "olmo2", "llama_yarn")
        ),
    ],
)
def test_answers_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = oracle.make_checkpoint(tmp_path / "model", kind)
    model = load_model(folder, chat=Chat(EMBEDDED / "model"))
    rng = np.random.default_rng(1)
    lengths = (5, 17, 9, 9, 12, 3)
    ids = [rng.integers(1, model.config.vocab, n).tolist() for n in lengths]
    model.chat.__dict__["ends"] = frozenset()  # they go on to the last
    found = answers(model, [PromptTokens(i, len(i) - 1) for i in ids], most=8, batch_size=4)
    theirs = oracle.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for own, prompt in zip(found, ids, strict=True):
        tokens = list(prompt)
        with torch.no_grad():
            for _ in range(8):
                tokens.append(int(theirs(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert own == tokens[len(prompt) :]


def test_an_answer_stops_at_the_end_of_its_turn() -> None:
    model = load_model(EMBEDDED / "model")
    asked = [model.chat.prompt(text, 99) for text, _ in PROMPTS]
    theirs: Any = oracle.AutoModelForCausalLM.from_pretrained(EMBEDDED / "model").eval()
    found = answers(model, asked, most=30)
    for own, prompt in zip(found, asked, strict=True):
        with torch.no_grad():
            whole = theirs.generate(
                torch.tensor([prompt.ids]),
                attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
                max_new_tokens=30,
                do_sample=False,
                eos_token_id=sorted(model.chat.ends),
                pad_token_id=0,
            )
        want = [t for t in whole[0, len(prompt.ids) :].tolist() if t not in model.chat.ends]
        assert own == want
    assert any(len(own) < 29 for own in found)
