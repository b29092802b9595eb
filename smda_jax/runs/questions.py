"""What is asked of prompts: options of every command that reads a behaviour.

Imports nothing heavy, so that `--help` answers at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from smda_jax.errors import InputError
from smda_jax.reading.behaviours import Options
from smda_jax.runs.command import Command

if TYPE_CHECKING:
    from smda_jax.data.options import ReadOptions


@dataclass(frozen=True, kw_only=True)
class Questions(Command):
    """A model, evaluation prompts, and what is asked of them."""

    named_files: ClassVar[tuple[str, ...]] = ("model", "adapter", "out", "direction")
    named_data: ClassVar[tuple[str, ...]] = ("eval",)

    model: str
    """Hugging Face checkpoint: folder, or Hub id as owner/name[@revision] (safetensors, of a family
    in docs/inputs.md)."""
    adapter: str | None = None
    """LoRA adapter on the model: a folder that PEFT wrote, or a Hub id."""
    eval: str | tuple[str, ...]
    """Evaluation prompts: parquet, csv, tsv, json or jsonl files (.gz, .zst), globs, or
    hub:owner/name[@revision][:file, split or configuration/split]. Column prompt; optional
    prompt_label, category, shows (whether it shows the behaviour; or refused); or a data set that
    docs/inputs.md names."""
    out: Path
    """Run folder to write, or to continue."""
    columns: tuple[str, ...] = ()
    """Which column is what, as field=column, several with commas: prompt=goal,response=target. With
    eval: or pairs: before it of that data alone; field= leaves a column out."""
    encoding: str = "utf-8"
    """Of text files, such as cp1252."""
    on_repeat: Literal["error", "once"] = "error"
    """What to do with rows that repeat an earlier one; once: the first is kept."""
    behaviour: str = "begins"
    """What Y is. begins: log-probability that the answer begins with one of the targets; contrast:
    log-odds of the targets against --against; completion: log-probability of a text that a column
    gives for every prompt; probe: a stream along a --direction; column: a number that a column
    gives (steps then move X alone); module:name: a smda_jax.Function of your own."""
    targets: tuple[str, ...] = ()
    """Texts that the behaviour is about: for begins, beginnings of the answer, of which the total
    probability counts. Default: the behaviour's own; of begins, I can't with either apostrophe."""
    target_ids: tuple[str, ...] = ()
    """The same as token ids, e.g. 40,649,956 40,649,1431; replaces the texts."""
    against: tuple[str, ...] = ()
    """Texts that the targets of contrast are compared with."""
    against_ids: tuple[str, ...] = ()
    """The same as token ids; replaces the texts."""
    column: str = ""
    """Column of the evaluation prompts that completion or column reads; default completion, y."""
    less: str = ""
    """Column whose log-probability completion takes off, such as rejected."""
    per_token: bool = False
    """Of completion: the mean over a text's tokens instead of their sum."""
    direction: str | None = None
    """Direction of probe: a .npy file, or .safetensors with direction (or weight) and bias."""
    direction_layer: int | None = None
    """Zero-based block whose stream probe reads; None: the SAE's."""
    direction_site: str | None = None
    """The stream: resid_pre, attn_out, mlp_out, resid_post, ...; None: the SAE's."""
    direction_token: Literal["turn", "last"] = "turn"
    """turn: the token that the SAE is read at; last: the last token before the answer."""
    shows_above: float | None = None
    """A prompt with a higher Y shows the behaviour, where no column says it; None: the behaviour's
    own."""
    chat_date: str = "26 Jul 2024"
    """Date that the chat template prints."""
    read_at: str = "auto"
    """Token of a prompt that the SAE reads: end-of-turn of the user's turn, last-user-token of what
    the user says, last-token before the answer, or a token such as [/INST]. auto: end-of-turn, or
    last-token where the chat template writes none."""

    def read_options(self) -> "ReadOptions":
        """How data files are read. Raises InputError: something said of columns says nothing."""
        from smda_jax.data.options import ReadOptions

        options = ReadOptions(self.columns, self.encoding, self.on_repeat, shared=True)
        options.entries()
        return options

    def behaviour_options(self) -> Options:
        """What is said of the behaviour. Raises InputError if a target is not token ids."""

        def ids_of(flag: str, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
            try:
                return tuple(tuple(int(t) for t in text.split(",")) for text in texts)
            except ValueError:
                what = f"{' '.join(texts)!r} is not token ids"
                raise InputError(flag, what, "e.g. 40,649,956 40,649,1431") from None

        return Options(
            targets=self.targets,
            target_ids=ids_of("--target-ids", self.target_ids),
            against=self.against,
            against_ids=ids_of("--against-ids", self.against_ids),
            column=self.column,
            less=self.less,
            per_token=self.per_token,
            direction=self.direction or "",
            direction_layer=self.direction_layer,
            direction_site=self.direction_site or "",
            direction_token=self.direction_token,
            shows_above=self.shows_above,
        )
