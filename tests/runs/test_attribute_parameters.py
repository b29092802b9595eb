"""Adapters and chosen parameters through the command."""

import numpy as np
import oracle
import pytest
from support import (
    IDS,
    PAIRS,
    PROMPTS,
    REFUSALS,
    close,
    fails,
    json_of,
    price_of,
    run,
    table,
)

from smda_jax.cli import main
from smda_jax.data.chat import Chat

FLOAT64 = ("--dtype=float64", "--bootstrap=0")


@pytest.fixture(scope="module")
def adapted(files, tmp_path_factory):
    """The tiny files, with an adapter on the model."""
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    oracle.make_adapter(folder, files["model"], r=3, target_modules=["q_proj", "up_proj"])
    return files | {"adapter": folder}


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    ["query", *(pytest.param(e, marks=pytest.mark.exhaustive) for e in ("reverse", "finite"))],
)
def test_an_adapter_is_worn_and_stepped_on(adapted, tmp_path, engine):
    # Small enough for the true step to be linear.
    eta = 1e-6 if engine == "finite" else 1e-4
    options = (f"--engine={engine}", f"--learning-rate={eta}")
    out = run(adapted, tmp_path / "run", *FLOAT64, *options)
    model = oracle.load_adapted(adapted["model"], adapted["adapter"])
    chat, site = Chat(adapted["model"]), ("resid_post", 1)
    sequences = [chat.encode(q) for q in REFUSALS]
    prompts = [chat.prompt(p, 512) for p, _ in PROMPTS]
    y = [oracle.read(model, p.ids, p.read_at, site, sequences)[1] for p in prompts]
    close(table(out, "prompts.parquet")["y"], y, 1e-9)
    kept, norms, want = [".lora_" in name for name in oracle.names_of(model)], [], []
    for prompt, response, _ in PAIRS:
        pair = chat.pair(prompt, response, 512)
        g = oracle.gradient(model, list(pair.ids), pair.response)[1]
        g = [x if own else 0 * x for x, own in zip(g, kept, strict=True)]
        norms.append(sum(float((x**2).sum()) for x in g) ** 0.5)
        places = [(p.ids, p.read_at) for p in prompts]
        dy = oracle.derivative(model, g, places, site, sequences, eps=1e-3 / norms[-1])[1]
        want.append(-eta * dy.mean())
    pairs = table(out, "pairs.parquet")
    close(pairs["gradient_norm"], norms, 1e-6)
    close(pairs["mean_delta_y"], want, 2e-3 if engine == "finite" else 1e-6)
    record = json_of(out / "run.json")
    assert record["parameters"]["said"] == ["lora"]
    assert record["parameters"]["moved"] == sum(
        p.numel() for p, own in zip(model.parameters(), kept, strict=True) if own
    )
    if engine == "reverse":
        assert not any(np.isnan(table(out, "pairs.parquet")["gradient_cosine"]))
        own = {k: str(v) for k, v in adapted.items()} | {"features": "3,8", "out": tmp_path}
        lora, every = (price_of(**own, parameters=(p,))["reverse"] for p in ("lora", "all"))
        assert lora < every
        main(["verify", str(out), "--pairs=3", "--learning-rates", "1e-5"])
        assert table(out, "verify.parquet")["holds"].all()


def test_one_layer_moves_by_an_optimiser_too(files, tmp_path):
    """What stays in place does so under decay as well; the true step equals first order of Adam's
    sign on these parameters."""
    options = ("--parameters", "layers.2.*", "--engine=finite")
    moved = run(files, tmp_path / "sgd", *FLOAT64, *options, "--update=optax.sgd")
    plain = run(files, tmp_path / "plain", *FLOAT64, *options)
    one, other = (table(out, "pairs.parquet")["mean_delta_y"] for out in (moved, plain))
    close(one, other, 1e-8)
    # The SAE reads layer 1: nothing it sees is moved.
    assert not table(moved, "influence.parquet")["delta_w_x"].any()
    assert len(table(plain, "influence.parquet")["delta_w_y"]) == len(PAIRS) * len(IDS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--damping=0.3",), ["--damping", "says nothing to sgd", "--update ekfac"]),
        (("--fisher=empirical", "--update=adam"), ["--fisher", "--update ekfac"]),
        (("--curvature-data=x.jsonl",), ["--curvature-data", "adam or adamw or ekfac"]),
        (("--update=ekfac", "--damping=-1"), ["--damping", "below 0"]),
        (("--update=ekfac", "--damping=0"), ["--damping", "singular"]),
        (("--update=ekfac", "--curvature-data=x.jsonl"), ["x.jsonl", "no such file"]),
        (("--update=ekfac", "--loss=dpo"), ["--fisher empirical"]),
    ],
)
def test_curvature_that_no_run_can_use(files, tmp_path, capsys, options, words):
    fails(capsys, lambda: run(files, tmp_path / "x", *options), *words)


def test_curvature_of_other_data(files, tmp_path):
    """Curvature that is taken from the pairs themselves, given once more as a file, is the same."""
    own = ("--update=ekfac", "--fisher=empirical", "--engine=query")
    one = run(files, tmp_path / "own", *FLOAT64, *own)
    again = run(files, tmp_path / "given", *FLOAT64, *own, f"--curvature-data={files['pairs']}")
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(files["pairs"].read_text().split("\n")[:2]))
    other = run(files, tmp_path / "few", *FLOAT64, *own, f"--curvature-data={few}")
    scores = [table(out, "pairs.parquet")["score"] for out in (one, again, other)]
    close(scores[1], scores[0], 1e-9)
    assert np.abs(scores[2] - scores[0]).max() > 1e-3 * np.abs(scores[0]).max()
    assert "curvature" in json_of(other / "run.json")["inputs"]


def test_parameters_that_no_run_can_move(files, adapted, tmp_path, capsys):
    fails(capsys, lambda: run(files, tmp_path / "x", "--parameters=lora"), "--adapter FOLDER")
    fails(capsys, lambda: run(files, tmp_path / "x", "--parameters=mlp"), "mlp names nothing")
    wrong = files | {"adapter": files["sae"]}
    fails(capsys, lambda: run(wrong, tmp_path / "x"), "has no adapter_config.json")
    assert not (tmp_path / "x").exists()
    main(["inspect", str(files["model"]), str(adapted["adapter"])])
    assert "LoRA adapter of rank 3 on q_proj, up_proj" in capsys.readouterr().out
    given = [f"--{name}={path}" for name, path in adapted.items()]
    main(["plan", *given])
    assert "of which move" in capsys.readouterr().out.replace("\n", " ")
