"""Output that goes nowhere, or into a character set that lacks ours: the work is done all the same."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli import HANGS, ROOT, TINY, refused

from framework.errors import UserError, printable
from framework.files import write_text
from framework.output import Output, lasting_output

QUICK = [*TINY, "--epochs", "1", "--num_train_eval", "1", "--eval_steps", "2"]


def shell(redirections: str, *arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run main.py with its output redirected by a shell."""
    command = ["bash", "-c", f'"$@" {redirections}', "bash", sys.executable, "main.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=HANGS, check=False
    )


def assert_finished(folder: Path) -> None:
    assert json.loads((folder / "summary.json").read_text())["results"]["distilled"]["networks"] == 1
    kinds = {json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()}
    assert kinds == {"step", "epoch", "evaluation"}


@pytest.mark.parametrize("redirections", [">/dev/full 2>/dev/full", ">&- 2>&- <&-"])
def test_a_run_that_cannot_print_finishes(redirections: str, tmp_path: Path) -> None:
    done = shell(redirections, *QUICK, "--save_dir", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_finished(tmp_path)


def test_processes_that_cannot_print_finish(tmp_path: Path) -> None:
    done = shell(">/dev/full", *QUICK, "--mp_distributed", "--nproc", "2", "--save_dir", tmp_path)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert_finished(tmp_path)


def test_a_full_disk_behind_standard_output_is_told() -> None:
    done = shell(">/dev/full", *QUICK, "--dry_run")
    (line,) = done.stderr.splitlines()
    assert line == (
        "main.py: warning: standard output cannot be written (No space left on device); what was printed is lost"
    )
    assert done.returncode == 0
    assert shell(">/dev/full", "--help").stderr == done.stderr


def test_a_reader_that_leaves_is_left(finished_run: Path, tmp_path: Path) -> None:
    for command in (["report", finished_run, "--output", tmp_path / "page.html"], [*QUICK, "--dry_run"], ["--help"]):
        done = shell("| true; exit ${PIPESTATUS[0]}", *command)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "page.html").exists()


def test_a_terminal_of_ascii_shows_deviations(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    flags = [*TINY, "--epochs", "2", "--save_dir", tmp_path / "run", "--resume"]
    done = shell("", *flags, PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0, done.stderr
    assert "+/- is one standard deviation over networks." in done.stdout


@pytest.mark.parametrize(
    ("text", "shown"), [("61 ± 1 – é", r"61 +/- 1 - \xe9"), ("caf\udce9", r"caf\udce9"), ("plain", "plain")]
)
def test_what_a_character_set_lacks_is_escaped(text: str, shown: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print(text, end="", file=Output(stream), flush=True)
    stream.seek(0)
    assert stream.read() == shown


def test_streams_are_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with lasting_output():
        print("é±")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "é±\n"


def test_a_mistake_is_one_line_whatever_names_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(UserError("class a\nb\x1b\udce9\u2028: lower it")) == r"class a\nb\x1b\udce9\u2028: lower it"
    assert printable(printable("a\n\\n")) == printable("a\n\\n")
    for part in ("train", "test"):
        for name in ("a\nb", "c"):
            (tmp_path / part / name).mkdir(parents=True)
    said = refused(["--dataset", "imagefolder", "--root", str(tmp_path)], capsys)
    assert said.count("\n") == 1
    assert r"class a\nb has no images" in said


def test_a_report_on_a_folder_whose_name_is_no_text(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(finished_run, folder)
    for flags in ([], ["--output", tmp_path / "page.html"]):
        command = [sys.executable, str(ROOT / "main.py"), "report", ".", *map(str, flags)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANGS, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "page.md").read_text()
    assert r"## caf\udce9" in page
    assert "](<caf%E9/distilled.png>)" in page
    assert r"caf\udce9" in (folder / "report.html").read_text()


def test_text_files_are_utf_8_whatever_names_hold(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "±\udce9")
    assert (tmp_path / "file").read_bytes() == "±\\udce9".encode()
