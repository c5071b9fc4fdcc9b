"""``main.py report``: what the page says, that it is safe and self-contained, and how a browser shows it."""

import html as escapes
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import browser
import pytest
import torch
from cli import refused
from sets import made_up

from framework.config.bptt import parse
from framework.distilled.formats import write_safetensors
from framework.errors import UserError
from framework.files import SET
from framework.report import page
from framework.report.folder import RunFolder, name_runs
from framework.report.page import comparison, html, markdown, pictures
from framework.report.tables import percent
from main import main


def figures_of(run: Path) -> list[list[str]]:
    """The result table as it has to be, straight from ``summary.json``."""
    summary = json.loads((run / "summary.json").read_text())
    return [
        [
            row["name"],
            *(f"{100 * row[m]:.1f} ± {100 * row[f'{m}_std']:.1f}" for m in ("top1", "top5", "ece")),
            str(row["networks"]),
            str(row["steps"]),
        ]
        for row in summary["results"].values()
    ]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are left out: drawing them takes a second."""
    monkeypatch.setattr(page, "themed", lambda draw: {"light": "data:,", "dark": "data:,"})


@pytest.fixture(scope="module")
def evaluated_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated and reported."""
    run = tmp_path_factory.mktemp("page") / "a<b>&'run"
    shutil.copytree(finished_run, run)
    flags = ["--num_train_eval", "2", "--eval_steps", "3", "--baselines", "random", "--device", "cpu"]
    assert main(["evaluate", str(run), *flags]) == 0
    assert main(["report", str(run)]) == 0
    return run


# ---- what it says ----------------------------------------------------------------------------------


def test_page_and_markdown_hold_the_figures_of_the_summary(evaluated_run: Path) -> None:
    text, markdown = ((evaluated_run / f"report.{kind}").read_text() for kind in ("html", "md"))
    for row in figures_of(evaluated_run):
        cells = [f">{escapes.escape(cell)}</td>" for cell in row]
        assert re.search(r"\s*<td[^<]*".join(map(re.escape, cells)), text)
        assert f"| {' | '.join(row)} |" in markdown
    found = json.loads((evaluated_run / "evaluation" / "inner.json").read_text())["results"]["convnet"]["random"]
    assert percent(found["top1"], found["top1_std"]) in text
    assert percent(found["top1"], found["top1_std"]) in markdown
    summary = json.loads((evaluated_run / "summary.json").read_text())
    for fact in (f"{summary['peak_memory_mib']:,.0f} MiB", summary["device"], f"torch {summary['torch']}"):
        assert fact in text
        assert fact in markdown


def test_the_command_line_runs_the_same_again(evaluated_run: Path) -> None:
    run = RunFolder(evaluated_run)
    words = shlex.split(" ".join(run.words))
    assert words[:2] == ["python", "main.py"]
    assert replace(parse(words[2:])[0], save_dir=run.config.save_dir) == run.config
    text = escapes.unescape((evaluated_run / "report.html").read_text())
    assert all(f"<span>{word}</span>" in text for word in run.words)
    assert " ".join(run.words) in (evaluated_run / "report.md").read_text()


def test_every_class_and_image_is_shown_and_every_picture_is_in_the_page(evaluated_run: Path) -> None:
    text = (evaluated_run / "report.html").read_text()
    assert text.count('alt="distilled image of class') == 10
    assert re.findall(r'<div class="name">(\d)</div>', text) == [str(k) for k in range(10)]
    sources = re.findall(r'\s(?:src|srcset|href)="([^"]{0,40})', text)
    assert len(sources) == 10 + 3 * 2  # three plots, each for light and for dark
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text


@pytest.mark.usefixtures("undrawn")
def test_the_markdown_shows_the_runs_own_pictures(evaluated_run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "deep" / "report.html"
    assert main(["report", str(evaluated_run), "--output", str(elsewhere)]) == 0
    shown = re.findall(r"!\[.*\]\(<(.*)>\)", elsewhere.with_suffix(".md").read_text())
    assert [Path(path).name for path in shown] == ["accuracy.png", "truncation.png", "distilled.png"]
    assert all((elsewhere.parent / unquote(path)).exists() for path in shown)


@pytest.mark.usefixtures("undrawn")
def test_learnt_labels_are_shown_by_their_largest_classes(run: Path) -> None:
    distilled = made_up(soft=True, channels=1)
    distilled = replace(distilled, labels=torch.tensor([[0.5, 0.25, 0.25], [1, 0, 0], *[[0, 2, 6]] * 4]))
    write_safetensors(distilled.stored(numbers=False), run / SET)
    shown = pictures(RunFolder(run))
    assert [entry["name"] for entry in shown] == list(distilled.class_names)
    assert shown[0]["images"][0]["label"] == "a cat 50 %, b/../c 25 %, <é> 25 %"
    assert shown[1]["images"][0]["label"] == "<é> 75 %, b/../c 25 %, a cat 0 %"
    assert "&lt;é&gt; 75 %" in html({"run": RunFolder(run)})


@pytest.mark.parametrize(("ipc", "shown", "more"), [(2, 2, 0), (12, 10, 2)])
def test_a_class_of_many_images_shows_the_first(ipc: int, shown: int, more: int, run: Path) -> None:
    write_safetensors(made_up(ipc=ipc).stored(numbers=False), run / SET)
    for entry in pictures(RunFolder(run)):
        assert (len(entry["images"]), entry["more"]) == (shown, more)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "a|b"])
def test_whatever_comes_from_files_is_escaped(evil: str, run: Path) -> None:
    distilled = made_up()
    write_safetensors(replace(distilled, class_names=(evil, "b", "c")).stored(numbers=False), run / SET)
    summary = json.loads((run / "summary.json").read_text())
    summary["results"]["distilled"]["name"] = summary["device"] = evil
    (run / "summary.json").write_text(json.dumps(summary))
    text = html({evil: RunFolder(run), "other": RunFolder(run)})
    assert escapes.escape(evil).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "49" not in re.findall(r">([^<]*)</td>", text)
    table = markdown({"x": RunFolder(run)}, run)
    rows = [line for line in table.splitlines() if line.startswith(f"| {evil[:1]}") and line.count("±") == 3]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [7]


def test_several_runs_stand_side_by_side(evaluated_run: Path, run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["results"]["distilled"]["top1"] = 0.123
    (run / "summary.json").write_text(json.dumps(summary))
    runs = name_runs([evaluated_run, run])
    assert list(runs) == [evaluated_run.name, "tiny"]
    header, rows = comparison(runs)
    table = {row[0]: row[1:] for row in rows}
    assert header == ["", evaluated_run.name, "tiny"]
    assert table["distilled, top-1 %"] == [figures_of(folder)[0][1] for folder in (evaluated_run, run)]
    assert table["full, top-1 %"] == [figures_of(folder)[2][1] for folder in (evaluated_run, run)]
    (run / "summary.json").unlink()
    table = {row[0]: row[1:] for row in comparison(name_runs([evaluated_run, run]))[1]}
    assert table["distilled, top-1 %"] == [figures_of(evaluated_run)[0][1], "–"]


def test_runs_are_named_by_what_tells_them_apart() -> None:
    paths = [Path("/save/digits/a/run"), Path("/save/mnist/a/run")]
    assert list(name_runs(paths)) == ["digits/a/run", "mnist/a/run"]
    with pytest.raises(UserError, match="given twice"):
        name_runs([Path("/save/a"), Path("/save/b/../a")])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("missing", [["summary.json"], ["summary.json", SET, "metrics.jsonl"]])
def test_an_unfinished_run_has_a_page(missing: list[str], run: Path) -> None:
    for name in missing:
        (run / name).unlink()
    assert main(["report", str(run)]) == 0
    assert "Not finished" in (run / "report.html").read_text()
    assert "Not finished" in (run / "report.md").read_text()


def test_a_last_line_that_was_cut_short_is_dropped(run: Path) -> None:
    whole = len(RunFolder(run).records["epoch"])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "epo')
    assert len(RunFolder(run).records["epoch"]) == whole


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{nothing}"], "no run is here"),
        (["{run}", "{run}"], "given twice"),
        (["{run}", "--output", "page.pdf"], "ends in .html"),
        (["{damaged}"], "config.json: cannot be read"),
        (["{future}"], "config.json: its flags are damaged (unknown flags flag_of_the_future"),
        (["{partial}"], "summary.json: damaged or of another version (lacks best_epoch"),
        ([], "required: RUN"),
        (["{run}", "--output", "{run}/summary.json/x.html"], "cannot make this folder"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    for name, content in (("future", '{"flag_of_the_future": 1}'), ("partial", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "partial" / "summary.json").write_text('{"device": "cpu"}')
    given = {name: tmp_path / name for name in ("nothing", "damaged", "future", "partial")} | {"run": run}
    before = sorted(tmp_path.rglob("*"))
    error = refused(["report", *(argument.format(**given) for argument in arguments)], capsys)
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


# ---- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    program = browser.find()
    if program is None:
        pytest.skip("no Chromium here to open the page with: install chromium")
    with browser.page(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(evaluated_run: Path, finished_run: Path) -> dict[bool, Path]:
    """The page of one run, and that of two."""
    two = evaluated_run / "two.html"
    assert main(["report", str(evaluated_run), str(finished_run), "--output", str(two)]) == 0
    return {False: evaluated_run / "report.html", True: two}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("several", [False, True])
def test_a_browser_shows_the_page(
    several: bool, width: int, dark: bool, chromium: browser.Page, pages: dict[bool, Path], evaluated_run: Path
) -> None:
    chromium.open(pages[several], width=width, dark=dark)
    assert chromium.complaints() == []
    assert {url.partition(":")[0] for url in chromium.requests()} == {"file", "data"}
    images = chromium.value("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(images) == (27 if several else 13)
    assert all(complete and natural > 0 and shown > 0 for complete, natural, shown in images)
    cells = "[...document.querySelector('article table').tBodies[0].rows].map(r => [...r.cells].map(c => c.innerText))"
    assert chromium.value(cells) == figures_of(evaluated_run)
    assert chromium.value("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways for
    red, *_ = map(int, re.findall(r"\d+", chromium.value("getComputedStyle(document.body).backgroundColor")))
    assert red < 64 if dark else red > 192
    plot = chromium.value("document.querySelector('.plots img').currentSrc")
    assert plot.startswith("data:image/png")
    assert (plot != chromium.value("document.querySelector('.plots img').src")) == dark
    smallest = "Math.min(...[...document.querySelectorAll('.strip img')].map(i => i.clientWidth))"
    assert chromium.value(smallest) >= 90
