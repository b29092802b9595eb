"""Configuration of evaluations. Imports nothing heavy, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from smda_jax.errors import InputError
from smda_jax.reading import behaviours
from smda_jax.runs.questions import Questions


@dataclass(frozen=True, kw_only=True)
class Evaluate(Questions):
    """Evaluate a model on prompts: how probable the behaviour is, soft metrics by category, and
    answers that are judged.

    The same command on the same folder continues: answers and verdicts that are there stay.
    """

    named_files: ClassVar[tuple[str, ...]] = (*Questions.named_files, "verdicts", "judge_prompt")

    positive: tuple[str, ...] = ("harmful",)
    """Labels of prompts that should show the behaviour; prompts of other labels should not."""
    generate: bool = False
    """Write the model's own answers (greedy) to answers.jsonl."""
    answer_tokens: int = 30
    """Of an answer, at most."""
    verdicts: Path | None = None
    """Judge by a table with columns prompt_id, label and category (refusal or compliance)."""
    judge: Literal["none", "keywords", "endpoint"] = "none"
    """Judge the answers: by what they begin with, or by a model at --judge-url."""
    keywords: Path | None = None
    """Text file of the beginnings, one a line, that count as refusals; default: usual ones."""
    judge_url: str = ""
    """OpenAI-compatible endpoint, such as http://localhost:8000/v1."""
    judge_model: str = ""
    """Model that is asked there."""
    judge_prompt: Path | None = None
    """Text file with {prompt} and {answer}; the reply is to hold refusal or compliance. Default: a
    short one."""
    judge_key: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key, where it needs one."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of parameters and passes."""
    max_length: int = 512
    """Tokens a prompt may have."""
    bootstrap: int = 1000
    """Resamples of the prompts behind the intervals (95 %); 0: none."""
    seed: int = 0
    """Of the resamples."""
    redact: bool = False
    """Leave the texts of prompts and answers out of the folder."""

    def check(self) -> None:
        """Raises InputError for values that no evaluation could use."""
        super().check()
        behaviours.check(self.behaviour, self.behaviour_options())
        for name, low in {"answer_tokens": 1, "bootstrap": 0, "max_length": 2}.items():
            if getattr(self, name) < low:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(flag, f"{getattr(self, name)} is below {low}")
        if self.verdicts is not None and self.judge != "none":
            raise InputError("--verdicts", "are given, and --judge finds some", "one of them")
        if self.judge == "endpoint" and not (self.judge_url and self.judge_model):
            what = "endpoint needs an address and a model"
            raise InputError("--judge", what, "--judge-url http://host:8000/v1 --judge-model NAME")
        if self.judge_url and not self.judge_url.startswith(("http://", "https://")):
            what = f"{self.judge_url!r} is no address"
            raise InputError("--judge-url", what, "such as http://localhost:8000/v1")
        for name, of in {
            "judge_url": "endpoint",
            "judge_model": "endpoint",
            "judge_prompt": "endpoint",
            "keywords": "keywords",
        }.items():
            if getattr(self, name) and self.judge != of:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(flag, f"says nothing without --judge {of}")
