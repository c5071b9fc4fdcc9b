"""``main.py leaderboard``: what is found, the rows, and that each row's command makes it again."""

import dataclasses
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli import refused
from PIL import Image
from sets import made_up, made_up_summary

from framework.config.bptt import Config, parse
from framework.distilled.formats import write_safetensors
from framework.files import write_json
from framework.records import Judgement, Origin, Results, Row
from framework.report.leaderboard import cells, standings
from framework.report.tables import percent
from main import main


def row(top1: float, **about: Any) -> Row:
    return replace(Row(top1, 0.01, top1, 0.01, 0.1, 0.01, 1.0, 0.1, name="x", networks=5, steps=9), **about)


def judgement(results: dict[str, Results], **about: Any) -> Judgement:
    origin = Origin("convnet", "rat-bptt", 10, False, "python main.py evaluate set.pt")
    made = Judgement("set.pt", "digits", "dc", "", [9], "val", 0, results, 1.0, "cpu", "2", "3", 1.0, origin=origin)
    return replace(made, **about)


def kept(path: Path, j: Judgement, name: str = "dc") -> Path:
    """Leave an evaluation beside a set that need not be there."""
    folder = path.with_name(f"{path.name}.evaluation")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", dataclasses.asdict(j))
    return path


def board(*paths: Path, out: Path) -> list[dict[str, Any]]:
    assert main(["leaderboard", *map(str, paths), "--out", str(out)]) == 0
    return json.loads((out / "leaderboard.json").read_text())


# ---- rows ------------------------------------------------------------------------------------------

RESULTS = {
    "convnet": {
        "distilled": row(0.9, bits_per_class=2058.4), "hard": row(0.8), "random": row(0.5), "herding": row(0.6),
        "full": row(0.99),
    },
    "vit": {"distilled": row(0.4), "hard": row(0.3)},
    "vgg11": {"distilled": row(0.6)},
}  # fmt: skip


def test_a_row_has_what_the_evaluation_found(tmp_path: Path) -> None:
    path = kept(tmp_path / "set.pt", judgement(RESULTS))
    ((found,), lines) = standings(path)
    assert lines == []
    assert (found.accuracy, found.deviation, found.networks, found.hard) == (0.9, 0.01, 5, 0.8)
    assert found.cross == pytest.approx((0.4 + 0.6) / 2)
    assert (found.real, found.real_name) == (0.6, "herding")
    assert (found.hours, found.bits_per_class, found.command) == (None, 2058.4, "python main.py evaluate set.pt")
    assert cells(3, found) == [
        "3", "rat-bptt", "10", "dc", "90.0 ± 1.0", "5", "80.0 ± 1.0", "50.0 (vit, vgg11)", "60.0 (herding)", "2,058",
        "–", str(path),
    ]  # fmt: skip


def test_other_networks_alone_are_no_accuracy_of_the_sets_own(tmp_path: Path) -> None:
    others = {name: RESULTS[name] for name in ("vit", "vgg11")}
    ((found,), _) = standings(kept(tmp_path / "set.pt", judgement(others)))
    assert (found.accuracy, found.networks, found.hard) == (None, None, None)
    assert found.cross == pytest.approx((0.4 + 0.6) / 2)
    for nothing in ({}, {"convnet": {"full": row(0.9)}}):
        rows, (line,) = standings(kept(tmp_path / "none.pt", judgement(nothing)))
        assert rows == []
        assert "has no row of the set; run: python main.py evaluate" in line


def test_a_set_whose_own_labels_are_one_hot_has_them_as_hard_ones(tmp_path: Path) -> None:
    origin = Origin("convnet", "rat-bptt", 1, True, "python")
    path = kept(tmp_path / "set.pt", judgement({"convnet": {"distilled": row(0.7)}}, origin=origin, select="test"))
    ((found,), _) = standings(path)
    assert (found.accuracy, found.hard) == (0.7, 0.7)
    assert cells(1, found)[4] == "70.0 ± 1.0*"


def test_each_prefix_is_a_row(tmp_path: Path) -> None:
    results = {"convnet": {"distilled 1": row(0.5), "hard 1": row(0.4), "random 1": row(0.2), "distilled 2": row(0.6)}}
    path = kept(tmp_path / "set.pt", judgement(results, prefixes=[1, 2]), "dc_prefixes")
    found, _ = standings(path)
    assert [(r.per_class, r.accuracy, r.hard, r.real) for r in found] == [(1, 0.5, 0.4, 0.2), (2, 0.6, None, None)]
    assert found[1].set == f"{path}, the first 2 of each class"
    path = kept(tmp_path / "one.pt", judgement({"convnet": {"distilled": row(0.5)}}, prefixes=[3]), "dc_prefixes")
    assert [r.per_class for r in standings(path)[0]] == [3]


def finished(folder: Path, **flags: Any) -> Path:
    """What a run without an evaluation leaves, as far as it matters here."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(Config(**flags).to_json())
    write_json(folder / "summary.json", dataclasses.asdict(made_up_summary()))
    return folder


def test_a_run_that_was_not_evaluated_has_the_row_of_its_own_table(tmp_path: Path) -> None:
    soft, hard = finished(tmp_path / "soft", train_y=True, seed=3), finished(tmp_path / "a run")
    one, two = (standings(path)[0][0] for path in (soft, hard))
    assert (one.accuracy, one.hard, one.hours) == (0.6123, None, 1.5 / 3600)
    assert (two.hard, two.recipe, two.real_name) == (0.6123, "its own table", "random")
    config, warnings = parse(shlex.split(one.command)[2:])
    assert (config, warnings) == (Config(train_y=True, seed=3, save_dir=str(soft)), [])
    assert shlex.split(two.command)[-1] == str(hard)


# ---- a run, evaluated ------------------------------------------------------------------------------


def test_a_rows_command_makes_it_again(run: Path, tmp_path: Path) -> None:
    flags = ["--num_train_eval", "2", "--eval_steps", "3", "--device", "cpu", "--labels", "learnt", "hard"]
    assert main(["evaluate", str(run), *flags, "--eval_arch", "convnet", "vit", "--width", "4"]) == 0
    (found,) = board(tmp_path, out=tmp_path / "board")
    judged = json.loads((run / "evaluation" / "inner.json").read_text())["results"]
    own = judged["convnet"]["distilled"]
    assert (found["accuracy"], found["deviation"], found["bits_per_class"]) == (
        own["top1"], own["top1_std"], own["bits_per_class"],
    )  # fmt: skip
    assert found["cross"] == judged["vit"]["distilled"]["top1"]
    assert (found["method"], found["per_class"], found["dataset"]) == ("rat-bptt", 1, "digits")
    summary = json.loads((run / "summary.json").read_text())
    assert found["hours"] == pytest.approx(summary["seconds"] / 3600)

    made, evaluated = found["command"].split(" && ")
    again = parse(shlex.split(made)[2:])[0]
    assert json.loads(replace(again, save_dir=None).to_json()) == {
        **json.loads((run / "config.json").read_text()), "save_dir": None,
    }  # fmt: skip
    (run / "evaluation" / "inner.json").unlink()
    assert main(shlex.split(evaluated)[2:]) == 0
    (repeated,) = board(tmp_path, out=tmp_path / "board")
    assert repeated == found


# ---- the files -------------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Sets of two data sets, at different depths."""
    folder = tmp_path / "sets"
    kept(folder / "good.pt", judgement({"convnet": {"distilled": row(0.8)}}))
    kept(folder / "deep" / "<b>", judgement({"convnet": {"distilled": row(0.9)}}, recipe="in|ner"))
    few = Origin("convnet", "ftd", 1, False, "python main.py evaluate few.pt")
    kept(folder / "few.pt", judgement({"convnet": {"distilled": row(0.7)}}, origin=few))
    kept(folder / "mnist.pt", judgement({"convnet": {"hard": row(0.6)}}, dataset="mnist"))
    return folder


def test_tables_pictures_and_page_agree(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.report.leaderboard.themed", lambda draw: {"light": "data:,", "dark": "data:,"})
    out = tmp_path / "new" / "out"
    rows = board(several, several / "good.pt", out=out)
    assert [(r["dataset"], r["per_class"], r["accuracy"], r["hard"]) for r in rows] == [
        ("digits", 1, 0.7, None), ("digits", 10, 0.9, None), ("digits", 10, 0.8, None), ("mnist", 10, None, 0.6),
    ]  # fmt: skip
    printed = capsys.readouterr().out.split()
    names = ["leaderboard-digits.png", "leaderboard-mnist.png", *(f"leaderboard.{s}" for s in ("html", "md", "json"))]
    assert printed == [str(out / name) for name in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    for name in names[:2]:
        with Image.open(out / name) as picture:
            assert picture.width > 400
    text, page = (out / "leaderboard.md").read_text(), (out / "leaderboard.html").read_text()
    for r in rows:
        shown = r["accuracy"] or r["hard"]
        assert percent(shown, 0.01) in text
        assert percent(shown, 0.01) in page
        assert r["command"] in text
    assert "in\\|ner" in text
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_what_was_not_evaluated_is_a_line_with_the_command(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.report.leaderboard.themed", lambda draw: {"light": "data:,", "dark": "data:,"})
    write_safetensors(made_up().stored(numbers=False), several / "new set.safetensors")
    (several / "other.safetensors").write_bytes(b"no set of ours")
    kept(several / "old.pt", judgement({"convnet": {"distilled": row(0.8)}}, origin=None))
    (several / "run").mkdir()
    (several / "run" / "config.json").write_text(Config().to_json())
    assert len(board(several, out=tmp_path / "out")) == 4
    assert capsys.readouterr().err.splitlines() == [
        f"{several}/new set.safetensors: was not evaluated; run: python main.py evaluate "
        f"'{several}/new set.safetensors' --labels learnt hard",
        f"{several}/old.pt.evaluation/dc.json: does not say its command, or has no row of the set; run: python main.py "
        f"evaluate {several}/old.pt --recipe dc",
        f"{several}/run: was not evaluated; run: python main.py evaluate {several}/run --labels learnt hard",
    ]


def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.report.leaderboard.themed", lambda draw: {"light": "data:,", "dark": "data:,"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    kept(tmp_path / "damaged" / "set.pt", judgement({}))
    (tmp_path / "damaged" / "set.pt.evaluation" / "dc.json").write_text("{")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        ([tmp_path / "none", "--out", tmp_path / "out"], "none: no such file or folder; check the path"),
        ([tmp_path / "empty", "--out", tmp_path / "out"], "empty: no run or set is there"),
        ([tmp_path / "damaged", "--out", tmp_path / "out"], "dc.json: cannot be read"),
        ([several, "--out", tmp_path / "file"], "--out "),
        ([several], "--out"),
    ):
        error = refused(["leaderboard", *map(str, arguments)], capsys)
        assert message in error
        assert error.count("\n") == 1
    error = refused(["leaderboard", str(tmp_path / "file"), "--out", str(tmp_path / "out")], capsys)
    assert error.splitlines()[1] == "main.py: error: no set was evaluated; run the commands above, then this one"
    assert sorted(tmp_path.rglob("*")) == before
