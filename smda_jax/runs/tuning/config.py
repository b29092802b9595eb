"""Configuration of fine-tuning. Imports nothing heavy, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from smda_jax.errors import InputError
from smda_jax.runs.command import Command

if TYPE_CHECKING:
    from smda_jax.data.options import ReadOptions
    from smda_jax.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Finetune(Command):
    """Fine-tune a checkpoint on pairs: a folder out that transformers (or PEFT) loads.

    The defaults are the recipe of the paper's authors. The same command on the same folder
    continues an interrupted run.
    """

    named_files: ClassVar[tuple[str, ...]] = ("model", "adapter", "out", "weights")
    named_data: ClassVar[tuple[str, ...]] = ("pairs",)

    model: str
    """Hugging Face checkpoint: folder, or Hub id as owner/name[@revision]."""
    pairs: str | tuple[str, ...]
    """Training pairs, as of attribute."""
    out: Path
    """Folder to write, or to continue."""
    adapter: str | None = None
    """LoRA adapter on the model, which is trained on."""
    lora_rank: int = 0
    """Train a new LoRA adapter of this rank instead of all parameters; 0: none."""
    lora_alpha: float = 16.0
    """Its factor is lora_alpha / rank."""
    lora_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Modules that it adapts."""
    parameters: tuple[str, ...] = ()
    """Parameters that move, as of attribute. Default: the adapter's, or all."""
    weights: Path | None = None
    """Table with columns pair_id and weight: how much each pair's loss counts; others count 1, and
    a weight of 0 leaves a pair's loss out while its place in a batch stays."""
    halves: int = 0
    """Train so many runs on random halves of the pairs instead, and write the mean of their
    weights: where training on a part of the pairs leads, for attribute --trained."""
    optimiser: str = "adamw"
    """Of optax, by its name."""
    learning_rate: float = 2e-5
    """At its highest."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """linear: to zero over the run; cosine: the same along half a wave; constant."""
    warmup: float = 0.0
    """Share of the steps over which the rate rises from zero."""
    weight_decay: float = 0.0
    """Of optimisers that take one."""
    epochs: int = 3
    """Passes over the pairs."""
    batch: int = 16
    """Pairs of a step; as many of them go through the model at a time as fit into memory."""
    clip: float = 1.0
    """The gradient's norm is cut to it; 0: it is not."""
    average: Literal["pair", "token"] = "pair"
    """pair: a batch's loss is the mean of its pairs' losses; token: that of its tokens, as in
    transformers since 4.46."""
    seed: int = 42
    """Of the order of the pairs, and of a new adapter's weights."""
    max_length: int = 1024
    """Tokens: a longer pair is cut, and counted."""
    loss: Literal["sft", "dpo"] = "sft"
    """As of attribute."""
    beta: float = 0.1
    """Of dpo."""
    loss_scope: Literal["response", "all"] = "all"
    """all: the whole sequence is scored; response: its answers."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of the passes; parameters and optimiser state are float32, or float64."""
    checkpoints: int = 0
    """Keep so many models on the way, evenly spaced, in OUT/checkpoints."""
    save_every: int = 0
    """Steps between states that a killed run continues from; 0: about once a minute."""
    columns: tuple[str, ...] = ()
    """See attribute."""
    encoding: str = "utf-8"
    """See attribute."""
    on_repeat: Literal["error", "once"] = "error"
    """See attribute."""
    chat_date: str = "26 Jul 2024"
    """Date that the chat template prints."""

    def recipe(self) -> "Recipe":
        """How it is trained."""
        from dataclasses import fields

        from smda_jax.training.recipe import Recipe

        return Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)})

    def read_options(self) -> "ReadOptions":
        """How data files are read."""
        from smda_jax.data.options import ReadOptions

        return ReadOptions(self.columns, self.encoding, self.on_repeat)

    def check(self) -> None:
        """Raises InputError for values that no run could use."""
        super().check()
        self.recipe().check()
        for name in ("lora_rank", "halves", "checkpoints", "save_every"):
            if getattr(self, name) < 0:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(flag, f"{getattr(self, name)} is below 0")
        if self.lora_rank and self.adapter:
            what = "makes a new adapter, and --adapter names one"
            raise InputError("--lora-rank", what, "leave one of them out")
        if self.halves and self.checkpoints:
            raise InputError("--checkpoints", "are of one run", "leave --halves out")
