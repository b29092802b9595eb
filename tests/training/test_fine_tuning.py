"""Fine-tuning against torch: the same start, order and recipe."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import oracle
import pytest
import torch
from support import EMBEDDED, close

from smda_jax.data.chat import Chat
from smda_jax.data.losses import Dpo, Sft
from smda_jax.data.tokenised import PairTokens, RowTokens
from smda_jax.errors import InputError
from smda_jax.model import checkpoint
from smda_jax.model.moved import moved_by
from smda_jax.reading.network import Model, load_model
from smda_jax.training.fine_tuning import State, Training
from smda_jax.training.recipe import ABSENT, Order, Recipe, order_of, rates, side_by_side

ALL = Sft("all")
FAST = Recipe(learning_rate=3e-3, epochs=5, batch=3, clip=0.9, weight_decay=0.1, seed=5)


def model_of(folder: Path) -> Model:
    """A checkpoint, with a tokenizer that these tests do not ask."""
    return load_model(folder, chat=Chat(EMBEDDED / "model"))


def pairs_of(vocab: int, count: int = 11, loss: Any = ALL) -> list[PairTokens]:
    """Random pairs of odd lengths."""
    rng, pairs = np.random.default_rng(3), []
    for _ in range(count):
        rows = []
        for _ in range(loss.rows):
            length = int(rng.integers(5, 19))
            ids = rng.integers(1, vocab, length).tolist()
            rows.append(RowTokens(ids, ((length // 2, length, 1.0),), length))
        pairs.append(PairTokens(tuple(rows), loss))
    return pairs


def torch_losses(
    folder: Path, pairs: list[PairTokens], order: Order, recipe: Recipe, **of: Any
) -> tuple[list[float], Any]:
    """Losses before every step, and the model after the last."""
    torch.manual_seed(0)
    model = oracle.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train()
    moving = [p for n, p in model.named_parameters() if of.get("moves", lambda _: True)(n)]
    make = {
        "adamw": lambda: torch.optim.AdamW(
            moving, recipe.learning_rate, weight_decay=recipe.weight_decay
        ),
        "sgd": lambda: torch.optim.SGD(moving, recipe.learning_rate),
    }[recipe.optimiser]
    optimiser, losses = make(), []

    def row_sum(row: RowTokens, scope: str) -> torch.Tensor:
        ids = torch.tensor([list(row.ids)])
        logits = model(ids).logits[0, :-1]
        own = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        return own if scope == "all" else own[row.turns[0][0] - 1 :]

    with torch.no_grad():
        base = [[row_sum(row, p.loss.scope).sum() for row in p.rows] for p in pairs]
    for pair, weight, rate in zip(*order, strict=True):
        total = torch.zeros(())
        for i, w in zip(pair, weight, strict=True):
            if i == ABSENT:
                continue
            sums = [row_sum(row, pairs[i].loss.scope) for row in pairs[i].rows]
            if len(sums) == 1:
                total = total + float(w) * sums[0].mean()
            else:
                margin = (sums[1].sum() - base[i][1]) - (sums[0].sum() - base[i][0])
                beta = pairs[i].loss.beta
                total = total - float(w) * torch.nn.functional.logsigmoid(beta * margin)
        optimiser.zero_grad()
        total.backward()
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(moving, recipe.clip)
        for group in optimiser.param_groups:
            group["lr"] = float(rate)
        optimiser.step()
        losses.append(float(total.detach()))
    return losses, model


def trained(training: Training, orders: list[Order], **of: Any) -> tuple[State, np.ndarray]:
    """Runs to their ends → (state, losses)."""
    losses = []
    state = training.run(orders, each=lambda _, __, own: losses.append(own), **of)
    return state, np.concatenate(losses, axis=1)


def loaded_after(state: State, folder: Path, out: Path, run: int = 0) -> dict[str, torch.Tensor]:
    """The weights of a run, written and read by transformers."""
    params = jax.tree.map(lambda leaf: leaf[run], state.params)
    checkpoint.save(out, checkpoint.read_raw_config(folder), params)
    return oracle.AutoModelForCausalLM.from_pretrained(out).state_dict()


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("llama3_tied_gqa", FAST),
        ("qwen2", Recipe(learning_rate=3e-3, epochs=5, batch=4, clip=0, schedule="constant")),
        (
            "llama3_tied_gqa",
            Recipe(optimiser="sgd", learning_rate=0.05, epochs=5, batch=3, average="token"),
        ),
        ("gemma3", Recipe(learning_rate=1e-3, epochs=5, batch=3, warmup=0.3, schedule="cosine")),
    ],
)
def test_training_is_that_of_torch(kind: str, recipe: Recipe, tmp_path: Path) -> None:
    folder = oracle.make_checkpoint(tmp_path / "base", kind)
    model = model_of(folder)
    pairs = pairs_of(model.config.vocab)
    training = Training(model, pairs, recipe)
    weight = np.linspace(0.5, 2, len(pairs))
    order = order_of(recipe, np.arange(len(pairs)), training.scored, weight)
    assert len(order.pair) == recipe.steps(len(pairs)) >= 15
    state, losses = trained(training, [order])
    want, after = torch_losses(folder, pairs, order, recipe)
    close(losses[0], want, 1e-5)
    found, before = loaded_after(state, folder, tmp_path / "out"), dict(model_weights(folder))
    for name, value in after.state_dict().items():
        # What an update of Adam is of a gradient near zero, rounding decides.
        moved = (value - before[name]).abs().max()
        assert (found[name] - value).abs().max() <= 2e-2 * moved + 1e-6, name


def model_weights(folder: Path) -> Any:
    return oracle.AutoModelForCausalLM.from_pretrained(folder).state_dict().items()


def test_preferences_are_trained_as_in_torch(tmp_path: Path) -> None:
    folder = oracle.make_checkpoint(tmp_path / "base", "llama3_tied_gqa")
    model = model_of(folder)
    pairs = pairs_of(model.config.vocab, 5, Dpo(0.3))
    recipe = Recipe(learning_rate=1e-3, epochs=4, batch=2, clip=0)
    training = Training(model, pairs, recipe)
    order = order_of(recipe, np.arange(5), training.scored)
    _, losses = trained(training, [order])
    want, _ = torch_losses(folder, pairs, order, recipe)
    close(losses[0], want, 1e-5)
    assert abs(losses[0, 0] - np.log(2)) < 1e-6
    assert losses[0, -1] < 0.6


def test_runs_side_by_side_are_those_alone(tmp_path: Path) -> None:
    model = model_of(oracle.make_checkpoint(tmp_path / "base", "llama3_tied_gqa"))
    pairs = pairs_of(model.config.vocab)
    training = Training(model, pairs, FAST)
    orders = [order_of(FAST, rows, training.scored) for rows in (np.arange(11), np.arange(2, 7))]
    together, losses = trained(training, orders)
    for run, order in enumerate(orders):
        alone, own = trained(training, [order])
        close(losses[run, : own.shape[1]], own[0], 1e-5)
        assert not losses[run, own.shape[1] :].any()
        for one, other in zip(*map(jax.tree.leaves, (together.params, alone.params)), strict=True):
            close(one[run], other[0], 1e-4)


def test_stopping_and_going_on_changes_nothing(tmp_path: Path) -> None:
    model = model_of(oracle.make_checkpoint(tmp_path / "base", "llama3_tied_gqa"))
    training = Training(model, pairs_of(model.config.vocab), FAST)
    order = order_of(FAST, np.arange(11), training.scored)
    kept: dict[int, Any] = {}

    def each(done: int, state: State, _: Any) -> None:
        kept[done] = jax.tree.map(np.asarray, state)

    whole = training.run([order], each=each, stops=[7])
    again = training.run([order], jax.tree.map(jax.numpy.asarray, kept[7]), first=7)
    for one, other in zip(*map(jax.tree.leaves, (whole, again)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_in_parts_is_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smda_jax.runtime import programs

    model = model_of(oracle.make_checkpoint(tmp_path / "base", "llama3_tied_gqa"))
    training = Training(model, pairs_of(model.config.vocab), FAST)
    order = order_of(FAST, np.arange(11), training.scored)
    whole, _ = trained(training, [order])
    calls = []
    run = programs.Program.run

    def tight(self: Any, *args: Any, **static: Any) -> Any:
        if self.name == "_advance" and args[1].weight.shape[-1] > 2:
            calls.append(args[1].weight.shape)
            raise programs.TooLargeError("pretended")
        return run(self, *args, **static)

    monkeypatch.setattr(programs.Program, "run", tight)
    parts, _ = trained(training, [order])
    assert calls
    for one, other in zip(*map(jax.tree.leaves, (whole.params, parts.params)), strict=True):
        close(one, other, 1e-4)


def test_what_does_not_move_stays(tmp_path: Path) -> None:
    folder = oracle.make_checkpoint(tmp_path / "base", "qwen2")
    model = model_of(folder)
    moved = moved_by(model.config, ["layers.1.mlp.*", "layers.0.self_attn.q_proj.bias"])
    training = Training(model, pairs_of(model.config.vocab), FAST, moved)
    order = order_of(FAST, np.arange(11), training.scored)
    state, losses = trained(training, [order])

    def moves(name: str) -> bool:
        return ".layers.1.mlp." in name or name.endswith("layers.0.self_attn.q_proj.bias")

    want, _ = torch_losses(folder, list(training.tokens), order, FAST, moves=moves)
    close(losses[0], want, 1e-5)
    found, before = loaded_after(state, folder, tmp_path / "out"), dict(model_weights(folder))
    changed = {name for name in before if not torch.equal(before[name], found[name])}
    assert changed == {name for name in before if moves(name)}


def test_the_last_step_of_an_epoch_is_a_mean_of_what_is_left() -> None:
    order = order_of(Recipe(batch=4, epochs=2), np.arange(10), np.ones(10, int))
    assert order.pair.shape == (6, 4)
    np.testing.assert_array_equal((order.pair != ABSENT).sum(axis=1), [4, 4, 2, 4, 4, 2])
    np.testing.assert_allclose(order.weight.sum(axis=1), 1)
    for epoch in (order.pair[:3], order.pair[3:]):
        assert sorted(epoch[epoch != ABSENT].tolist()) == list(range(10))
    assert order.pair[:3].tolist() != order.pair[3:].tolist()


def test_the_mean_of_tokens_weighs_pairs_by_their_tokens() -> None:
    recipe = Recipe(batch=2, epochs=1, average="token")
    order = order_of(recipe, np.array([1, 3]), np.array([9, 30, 9, 10]))
    weight = dict(zip(order.pair[0].tolist(), order.weight[0].tolist(), strict=True))
    assert weight == {1: 0.75, 3: 0.25}


def test_rates_are_those_of_the_trainer() -> None:
    np.testing.assert_allclose(rates(Recipe(), 4), [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(rates(Recipe(warmup=0.4), 5), [0, 0.5, 1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(rates(Recipe(schedule="constant"), 3), [1, 1, 1])
    import transformers

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], 1.0)
    for name, recipe in (("linear", Recipe(warmup=0.3)), ("cosine", Recipe(schedule="cosine"))):
        schedule = transformers.get_scheduler(name, optimiser, 3 * (name == "linear"), 10)
        want = []
        for _ in range(10):
            want.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        np.testing.assert_allclose(rates(recipe, 10), want, atol=1e-12)


def test_a_run_that_is_over_stands_still() -> None:
    one = Order(np.array([[0, 1], [2, ABSENT]]), np.array([[0.5, 0.5], [1, 0]]), np.ones(2))
    other = Order(np.array([[0], [1], [2]]), np.ones((3, 1)), np.ones(3))
    both = side_by_side([one, other])
    assert both.pair.tolist() == [[[0, 1], [2, -1], [-1, -1]], [[0, -1], [1, -1], [2, -1]]]
    assert both.rate.tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        (Recipe(optimiser="nothing"), "--optimiser"),
        (Recipe(optimiser="chain"), "--optimiser"),
        (Recipe(optimiser="rprop", weight_decay=0.1), "--weight-decay"),
        (Recipe(epochs=0), "--epochs"),
        (Recipe(batch=0), "--batch"),
        (Recipe(warmup=1.5), "--warmup"),
        (Recipe(learning_rate=float("nan")), "--learning-rate"),
    ],
)
def test_recipes_that_cannot_be_used_are_refused(recipe: Recipe, word: str) -> None:
    with pytest.raises(InputError, match=word):
        recipe.check()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] * (name not in ("lion", "adafactor")))
        for name in ("sgd", "lion", "adafactor", "rmsprop", "adamw", "adam")
    ],
)
def test_optimisers_of_optax_train(name: str, tmp_path: Path) -> None:
    model = model_of(oracle.make_checkpoint(tmp_path / "base", "llama3_tied_gqa"))
    recipe = Recipe(optimiser=name, learning_rate=1e-3, epochs=4, batch=4)
    training = Training(model, pairs_of(model.config.vocab), recipe)
    order = order_of(recipe, np.arange(11), training.scored)
    _, losses = trained(training, [order])
    assert losses[0, -3:].mean() < losses[0, :3].mean()
    assert hasattr(optax, name)
