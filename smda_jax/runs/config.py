"""Configuration of an attribution: the commands that are one.

Imports nothing heavy, so that `--help` answers at once.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from smda_jax.engines.offers import READS_ELSEWHERE, Keep, keep_for
from smda_jax.model.operations import ADAPTER, ALL
from smda_jax.runs.checks import check_attribute
from smda_jax.runs.command import Command
from smda_jax.runs.questions import Questions
from smda_jax.runs.recipes import MANY, Step, step_of


@dataclass(frozen=True, kw_only=True)
class Attribute(Questions):
    """Attribute a policy's shift to training pairs: checkpoint, SAE, prompts and pairs in; a run
    folder out.

    The same command on the same folder continues an interrupted run.
    """

    named_files: ClassVar[tuple[str, ...]] = (
        "recipe",
        "trained",
        *Questions.named_files,
        "sae",
        "features",
        "feature_labels",
        "cache",
    )
    named_data: ClassVar[tuple[str, ...]] = (*Questions.named_data, "pairs", "curvature_data")

    sae: str
    """SAE: folder or file, or Hub id as owner/name[@revision][:folder] (formats in
    docs/inputs.md)."""
    pairs: str | tuple[str, ...]
    """Training pairs, same files. Columns prompt and response, or messages, or prompt, chosen and
    rejected; optional label, category, planted, raises; or a data set that docs/inputs.md names."""
    layer: int | None = None
    """Zero-based block whose output the SAE reads; None takes it from the SAE's config."""
    features: str = "contrast:0.1"
    """Feature ids (3,17,204), a file of ids or policy.json, contrast:T (|mean activation on prompts
    of one label - on the others| > T), or all."""
    feature_labels: str | None = None
    """Table with columns feature_id and label, shown beside the ids."""
    neuronpedia: str | None = None
    """The SAE on neuronpedia.org as MODEL/SAE, such as llama3.1-8b/16-llamascope-res-32k: features
    get a link to their page."""
    redact: bool = False
    """Leave the texts of prompts and responses out of the run folder."""
    raises: tuple[str, ...] = ()
    """Labels of pairs that are expected to raise Y; pairs of other labels are expected to lower it.
    Default: the column raises of the pairs, else the labels whose responses begin as the targets
    do, else nothing is expected, and no pair is flagged."""
    alpha: float = 5.0
    """Ridge penalty of the policy."""
    alpha_folds: int = 0
    """If not 0, choose alpha from 0.01 ... 1000 by so many folds of the training part instead."""
    recipe: str | None = None
    """Training that the step stands for, as OPTIMISER-RATExEPOCHS such as adamw-2e-5x3 or
    sgd-1e-3x1, a finetune.json, or sgd-step (the paper's: one plain step of 1e-4). It says what
    --update, --learning-rate, --batch, --loss, --beta, --loss-scope and --max-length do not.
    Default: adamw-2e-5x3, the authors' recipe; with --update sgd-step."""
    trained: str | None = None
    """Checkpoint that training leads to, such as finetune --halves writes: prompts are read there,
    and the policy is its; steps are still those of --model."""
    learning_rate: float | None = None
    """η: what the step of --update on each pair is scaled by. Of a recipe: the rates that a pair
    meets in a run, over the batch."""
    batch: int | None = None
    """Pairs of a training step (--update adamw)."""
    encoder: Literal["relu_proxy", "native"] = "relu_proxy"
    """Activations: relu(h W_enc + b_enc) as in the paper, or whatever the SAE's architecture
    does."""
    gate: Literal["on", "off"] = "on"
    """on: only active features change (the derivative of the encoder); off: all do."""
    engine: Literal["auto", "forward", "reverse", "query", "finite"] = "auto"
    """auto takes the cheapest of the first-order engines forward, reverse and query, which agree;
    finite: the true step (use float64)."""
    keep: Literal["auto", "score", "coefficients", "active", "features", "residual"] = "auto"
    """What is kept of each pair: its score alone; every coefficient's shift; the change of each
    prompt's active features and Y; that of all chosen features; or of the residual stream at
    --layers. auto: coefficients with engine query, features with engine finite or gate off, else
    active."""
    layers: tuple[int, ...] = ()
    """With --keep residual: blocks whose stream is kept, besides the SAE's."""
    parameters: tuple[str, ...] = ()
    """Parameters that the step moves: all, lora, or patterns such as layers.8-15.* or *.mlp.* of
    their names in the checkpoint. Default: lora with --adapter, else all."""
    update: str | None = None
    """The step. adamw: what a run of Adam makes of a pair in expectation; sgd: -eta*g; normalised:
    -eta*g/|g|; adam: -eta*g/(sqrt(v)+1e-8) with v the mean squared gradient of the pairs; ekfac:
    -eta*(F+damping)^-1 g with F the Kronecker-factored curvature, eigenvalues corrected; with
    engine finite also the first step of any optimiser of optax, such as optax.lion."""
    curvature_data: str | None = None
    """Pairs that adamw, adam and ekfac take moments and curvature from; default: the pairs."""
    damping: float = 0.1
    """Of ekfac, in units of the mean eigenvalue of each block."""
    fisher: Literal["true", "empirical"] = "true"
    """Of ekfac. true: answers drawn from the model (--seed); empirical: the data's own."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of parameters and passes. The ridge is always solved in float64."""
    max_length: int | None = None
    """Tokens: a longer pair is cut, and counted; a longer prompt is refused."""
    loss: Literal["sft", "dpo"] | None = None
    """Of a pair. sft: mean cross-entropy; dpo: preference of column chosen over rejected, the base
    weights being the reference."""
    beta: float | None = None
    """Of dpo."""
    loss_scope: Literal["response", "all"] | None = None
    """Tokens that a pair's loss scores: those of answers (of a conversation each turn's, by its
    weight), or all. A run of sgd-step scores answers, one of a recipe all."""
    subset: tuple[str, ...] = ()
    """Evaluation subsets: all, label:LABEL, balanced:LABEL (as many that show the behaviour as
    others), A+B (as many of one label as of another), random:N[:SEED]; natural and balanced: of the
    label harmful.

    Default: all, and of harmful and harmless prompts the paper's.
    """
    on_overlap: Literal["error", "drop", "drop-pairs", "keep"] = "error"
    """What to do with evaluation prompts that are also trained on: drop leaves out the prompts,
    drop-pairs the pairs."""
    seed: int = 0
    """Of subsets, split and folds."""
    test_fraction: float = 0.2
    """Share of prompts held out to score the policy, stratified by label and behaviour."""
    bootstrap: int = 1000
    """Resamples of the prompts behind the intervals (95 %) of coefficients, shifts, scores and
    flags; 0: none."""
    tokens: tuple[str, ...] = ()
    """Write tokens.parquet: what each token of a pair contributes to score, mean_delta_y, or the
    coefficient of a feature (its id)."""
    check_pairs: int = 0
    """After the run, compare so many pairs with their true step (engine finite, float64)."""
    pair_block: int = 0
    """Pairs per block; 0: as the planner finds best."""
    prompt_block: int = 0
    """Prompts per batch (engine reverse: readouts); 0: as the planner finds best."""
    distributed: bool = False
    """Join the other processes of this run (SLURM, Kubernetes, Open MPI, TPU pods, or
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID); the run folder lies where all of
    them see it."""
    shard_params: int = 1
    """Spread the parameters over groups of so many devices, for models that do not fit on one."""
    cache: Path | None = None
    """Folder for a converted copy of the checkpoint, which later runs load faster."""
    allow_pickle: bool = False
    """Read SAEs that are pickles, such as dictionary_learning's ae.pt (weights only, needs
    torch)."""
    normalise_activations: str = ""
    """What the SAE's input goes through, where its config leaves it out or is wrong: none,
    layer_norm, constant_norm_rescale, or a number that it is multiplied by."""
    config: Path | None = None
    """Start from this run.json; other options override it."""

    def check(self) -> None:
        """Raises InputError for values that no run could use (not at construction, where the parser
        would reword it)."""
        super().check()
        check_attribute(self.settled())

    def settled(self, pairs: int = MANY) -> "Attribute":
        """With everything that a recipe says and no option does; of so many pairs.

        Raises:
            InputError: there is no such recipe, or it stands for no step.
        """
        missing: dict[str, Any] = {}
        if any(getattr(self, name) is None for name in ("recipe", *Step._fields)):
            said = step_of(self.recipe, self.update, self.batch, pairs)
            missing = {k: v for k, v in said.items() if getattr(self, k) is None}
        if self.trained is not None and self.engine == "auto":
            missing["engine"] = READS_ELSEWHERE
        return replace(self, **missing)

    @property
    def step(self) -> Step:
        """The step, once everything is said. Raises InputError: see `settled`."""
        settled = self.settled()
        return Step(*(getattr(settled, name) for name in Step._fields))

    def moving(self) -> tuple[str, ...]:
        """What --parameters says, once its default is resolved."""
        return self.parameters or ((ADAPTER,) if self.adapter else (ALL,))

    def kept(self) -> Keep:
        """What is kept, once auto is resolved."""
        return keep_for(self.keep, self.engine, self.gate == "off")


@dataclass(frozen=True, kw_only=True)
class Plan(Attribute):
    """Say what every engine would cost for an `attribute` of these options, and which one it would
    take. Runs nothing."""

    out: Path = Path()
    """Not used."""
    assume_features: int = 75
    """Features that the rule contrast:T is taken to choose."""
    assume_active: float = 1 / 3
    """Share of the features that is taken to be active on a prompt."""


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Run `attribute` on the model, SAE, prompts and pairs that ship with the package."""

    out: Path = Path("runs/demo")
    """Run folder to write, or to continue."""
    validate: bool = False
    """Then train on random subsets to see how good its figures are, and without the flagged pairs
    to see what acting on them comes to (some minutes)."""

    def attribute(self) -> Attribute:
        """The command that the demo is."""
        folder = Path(__file__).parent.parent / "embedded"
        return Attribute(
            model=str(folder / "model"),
            sae=str(folder / "sae"),
            eval=str(folder / "prompts.parquet"),
            pairs=str(folder / "pairs.parquet"),
            feature_labels=str(folder / "feature_labels.parquet"),
            out=self.out,
            check_pairs=8,
        )
