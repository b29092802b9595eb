"""The page of a run: hostile texts in it, clicked through in a browser where there is one."""

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import run, weights_of

from smda_jax.cli import main
from smda_jax.report.data import content, read_run
from smda_jax.runs.attribution.columns import COLUMNS

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    '<a href="javascript:window.hacked = 1">x</a>\u2028 {{content}} $\\alpha$ =1+1'
)
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a Chromium on the path, and there is none"
)


@pytest.fixture(scope="module")
def hostile_files(files, tmp_path_factory):
    """The files of the tests with markup and script in every field of text."""
    folder = tmp_path_factory.mktemp("hostile")
    out = dict(files)
    for name, columns in (("eval", ("prompt",)), ("pairs", ("prompt", "response"))):
        rows = [json.loads(line) for line in Path(files[name]).read_text().splitlines()]
        for i, row in enumerate(rows):
            row |= {column: f"{row[column]} {HOSTILE}" for column in columns} | {
                "category": f"c{i % 2} {HOSTILE}"
            }
        out[name] = folder / f"{name}.jsonl"
        out[name].write_text("\n".join(json.dumps(row) for row in rows))
    labels = folder / "labels.parquet"
    pq.write_table(pa.table({"feature_id": list(range(33)), "label": [HOSTILE] * 33}), labels)
    out["feature-labels"] = labels
    return out


@pytest.fixture(scope="module")
def hostile(hostile_files, tmp_path_factory) -> Path:
    """A run of them, verified, with its page."""
    out = run(
        hostile_files,
        tmp_path_factory.mktemp("run") / "out",
        "--engine=reverse",
        "--bootstrap=50",
        "--dtype=float64",
    )
    main(["verify", str(out), "--pairs=3", "--learning-rates", "1e-5", "1e-3"])
    return out


def test_the_page_is_one_file_that_names_no_other(hostile):
    page = (hostile / "report.html").read_text()
    own = re.sub(
        r"<script.*?</script>", "", page, flags=re.S
    )  # what plotly's source speaks of, it does not fetch
    assert "://" not in own
    assert not re.search(r"<(link|img|iframe)\b", own)
    assert len(page) < 15e6


FURTHER = ("tokens", "validation", "experiment/")


def test_every_column_is_documented(hostile):
    for path in hostile.glob("*.parquet"):
        if path.name == "verify_points.parquet":
            continue
        assert set(pq.read_schema(path).names) <= set(COLUMNS[path.name]), path.name
    for name in COLUMNS:
        if not name.startswith(FURTHER):  # of commands and options that this run had none of
            assert (hostile / name).is_file(), name


def test_a_redacted_page_holds_no_text(hostile):
    found = read_run(hostile)
    assert "window.hacked" in json.dumps(content(found)["pairs"])
    left = content(found, redact=True)
    texts = [
        left["pairs"]["prompt"],
        left["pairs"]["response"],
        left["candidates"]["prompt"],
        left["category_prompts"]["prompt"],
    ]
    assert "window.hacked" in json.dumps(content(found)["category_prompts"]["prompt"])
    assert "window.hacked" not in json.dumps(texts)


def test_what_the_page_holds_is_what_the_tables_say(hostile):
    found = read_run(hostile)
    influence = pq.read_table(hostile / "influence.parquet", filters=[("subset", "=", "all")])
    total = found.contribution["x"] + found.contribution["y"]
    np.testing.assert_allclose(
        total.ravel(), influence["contribution"].to_numpy(), rtol=1e-9, atol=1e-18
    )
    assert sorted(found.pair_order.tolist()) == list(range(len(total)))
    assert sorted(found.feature_order.tolist()) == list(range(total.shape[1]))
    label = np.array(pq.read_table(hostile / "pairs.parquet")["label"].to_pylist())[
        found.pair_order
    ]
    assert (
        len([1 for a, b in zip(label[1:], label[:-1], strict=True) if a != b])
        == len(set(label.tolist())) - 1
    )  # class by class


def test_a_page_of_some_pairs_counts_them_all(hostile, monkeypatch):
    whole = content(read_run(hostile))
    monkeypatch.setattr("smda_jax.report.data.PAIRS", 2)
    part = content(read_run(hostile))
    assert len(part["pairs"]["pair_id"]) == len(part["contribution"]["x"]) == 2
    assert part["totals"] == whole["totals"]
    pairs = pq.read_table(hostile / "pairs.parquet").to_pydict()
    assert part["totals"]["flagged"] == sum(pairs["flagged"])
    assert sum(map(len, part["totals"]["scores"].values())) == len(pairs["score"])


def test_figures_for_a_paper(hostile, tmp_path):
    main(["report", str(hostile), "--figures", str(tmp_path / "figures")])
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    expected = (
        "coefficients",
        "gaps",
        "effects",
        "pathways",
        "interference",
        "landing",
        "scores",
        "agreement",
        "verify",
        "timings",
    )
    assert names == {f"{name}.{suffix}" for name in expected for suffix in ("png", "pdf")}


@pytest.fixture(scope="module")
def scores(hostile_files, tmp_path_factory) -> Path:
    """A run that kept scores only."""
    return run(
        hostile_files, tmp_path_factory.mktemp("scores") / "run", "--keep=score", "--engine=query"
    )


def test_a_run_of_scores_claims_nothing_of_what_it_did_not_keep(scores):
    shown = content(read_run(scores))
    assert (
        set(shown["pairs"]["flagged_delta_y"])
        == set(shown["pairs"]["flagged_off_target"])
        == {None}
    )
    assert shown["totals"]["delta_y"] is False
    assert shown["summary"]["flags"]["by_mean_delta_y"] is None
    assert "influence.parquet" not in shown["columns"]
    want = weights_of(scores, shown["features"]["feature_id"])
    np.testing.assert_allclose(shown["features"]["weight"], want, rtol=1e-4)
    assert set(shown["features"]["label"]) == {HOSTILE}


@browser
def test_the_page_of_scores_alone_can_be_clicked_through(scores):
    with browse(scores / "report.html") as (page, trouble):
        assert "not known" in page.inner_text("#finding")
        page.click("#pairs tbody tr >> nth=0")
        assert not page.inner_text("dialog").rstrip().endswith("null")
        page.keyboard.press("Escape")
        page.click("#policy tbody tr >> nth=0")
        assert page.inner_text("#dialog-title").startswith("Feature")
        assert trouble == []


def test_what_is_no_run_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert re.fullmatch(r"smda-jax: error: .*is not a run folder.*\n", capsys.readouterr().err)


@pytest.fixture(scope="module")
def opened(hostile):
    """The page of the hostile run in a browser."""
    with browse(hostile / "report.html") as both:
        yield both


@contextmanager
def browse(path):
    """A page in a browser → (page, what it asked for or complained of)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        trouble: list[str] = []
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith(("file:", "data:", "blob:")) else trouble.append(r.url)
            ),
        )
        page.on("pageerror", lambda e: trouble.append(str(e)))
        page.on("console", lambda m: trouble.append(m.text) if m.type == "error" else None)
        page.goto(f"file://{path}")
        yield page, trouble
        chromium.close()


@browser
def test_no_text_of_a_data_set_acts(opened):
    page, trouble = opened
    for link in page.query_selector_all("#nav a"):
        link.click()
        page.wait_for_timeout(150)
    for figure in page.query_selector_all(".plot"):  # each is drawn when it is to be seen
        figure.scroll_into_view_if_needed()
        figure.wait_for_selector(".main-svg >> nth=0", state="attached")
    assert page.evaluate("window.hacked") is None
    assert page.query_selector_all("main img, main script, main a[href^=javascript]") == []
    assert "</script>" in page.inner_text("#pairs")
    assert trouble == []


@browser
def test_a_category_shows_its_prompts_and_an_address_opens_what_it_names(opened, hostile):
    page, trouble = opened
    page.click("#gaps tbody tr >> nth=0")
    assert page.inner_text("#dialog-title").startswith("Category c")
    asked = pq.read_table(hostile / "prompts.parquet").to_pydict()
    name = page.inner_text("#dialog-title").removeprefix("Category ")
    known = [
        t
        for t, c in zip(asked["prompt"], asked["category"], strict=True)
        if c.split()[0] == name.split()[0]
    ]
    shown = [cell.inner_text() for cell in page.query_selector_all("dialog td.wide")]
    assert "window.hacked" in shown[0]
    assert {" ".join(t.split()) for t in shown[: len(known)]} <= {
        " ".join(t.split()) for t in asked["prompt"]
    }
    there = page.evaluate("location.href")
    page.keyboard.press("Escape")
    page.wait_for_timeout(200)  # the dialog tells that it has closed a little later
    assert "#category=" in there
    assert "#" not in page.evaluate("location.href")
    titles = {
        there.partition("#")[2]: f"Category {name.split()[0]}",
        "pair=zz": "Not on",
        "feature=": "Not on",
        "pair=": "Not on",
    }
    for asked_for, title in titles.items():
        page.evaluate(f"location.hash = {json.dumps(asked_for)}")
        page.wait_for_timeout(100)
        assert page.inner_text("#dialog-title").startswith(title)
        page.keyboard.press("Escape")
        page.wait_for_timeout(100)
    # Another place of the page closes what is open; keys move what is open.
    page.evaluate("location.hash = 'feature=14'")
    page.wait_for_timeout(100)
    assert page.evaluate("document.activeElement.id") == "dialog-title"
    page.evaluate("location.hash = 'pairs'")
    page.wait_for_timeout(100)
    assert not page.is_visible("dialog")
    pair = pq.read_table(hostile / "pairs.parquet")["pair_id"][1].as_py()
    page.evaluate(f"location.hash = 'pair={pair[:12]}'")
    page.wait_for_selector(f"dialog h3:has-text('Pair {pair[:8]}')")
    page.keyboard.press("Escape")
    assert page.evaluate("window.hacked") is None
    assert trouble == []


@browser
def test_one_can_ask_for_a_pair_and_a_feature(opened):
    page, trouble = opened
    page.click("#pairs tbody tr >> nth=0")
    assert page.is_visible("dialog h3:has-text('Where its effect falls')")
    assert "window.hacked" in page.inner_text("dialog blockquote >> nth=0")
    page.click("dialog tbody tr >> nth=0")
    assert page.is_visible("dialog h3:has-text('Pairs that move it most')")
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog")
    page.click("#pairs thead button:text-is('score')")
    scores = [
        float(cell.inner_text())
        for cell in page.query_selector_all("#pairs tbody tr td:nth-child(5)")
    ]
    assert scores == sorted(scores, reverse=True)
    with page.expect_download() as download:
        page.click("#pairs button:has-text('CSV')")
    text = Path(download.value.path()).read_text("utf-8-sig")
    assert text.splitlines()[0].startswith('"pair_id","label"')
    assert "[object" not in text
    # By keyboard: the row's Enter opens, and what one came from is a step back.
    page.focus("#pairs tbody tr >> nth=1")
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    first = page.inner_text("#dialog-title")
    page.click("dialog tbody tr >> nth=0")
    page.click("dialog button:has-text('Back')")
    assert page.inner_text("#dialog-title") == first
    page.keyboard.press("Escape")
    # What is not shown is found all the same: an id, a response.
    page.fill("#pairs input[type=search]", first.split()[1].rstrip(":"))
    assert len(page.query_selector_all("#pairs tbody tr")) == 1
    page.fill("#pairs input[type=search]", "no such text")
    assert page.inner_text("#pairs tbody") == "Nothing matches."
    page.fill("#pairs input[type=search]", "")
    page.click("#theme")
    page.select_option("#effects select", "x")
    assert page.evaluate("window.hacked") is None
    assert trouble == []
