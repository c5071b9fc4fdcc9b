"""What README.md, CONTRIBUTING.md and docs/ show runs as it is shown, and what they point at is there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import COMMANDS, Command

from framework.config.bptt import parse
from framework.config.registry import parse as parse_any
from main import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_published_command_is_shown(command: Command) -> None:
    assert command.line in " ".join(SHELL.split())


def test_every_distillation_shown_is_understood_without_a_warning() -> None:
    lines = [line for line in re.findall(r"^python main.py (--.*)", SHELL, re.MULTILINE) if "--help" not in line]
    assert len(lines) > len(COMMANDS)
    for line in lines:
        assert parse(shlex.split(line, comments=True))[1] == [], line


def test_every_command_of_trajectory_matching_shown_is_understood_without_a_warning() -> None:
    lines = re.findall(r"^python main.py ((?:buffer|ftd) .*)", SHELL, re.MULTILINE)
    assert {line.split()[0] for line in lines} == {"buffer", "ftd"}
    for line in lines:
        assert parse_any(shlex.split(line, comments=True))[1] == [], line


def test_every_use_of_a_set_shown_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """Each gets as far as finding that its run, or its set of the zoo, is not there."""
    lines = set(re.findall(r"^python main.py ((?:evaluate|export|report|leaderboard|advise) .*)", SHELL, re.MULTILINE))
    assert {line.split()[0] for line in lines} == {"evaluate", "export", "report", "leaderboard", "advise"}
    for line in lines:
        arguments = shlex.split(line.replace("[OTHER RUNS]", "").replace("save/", "nowhere/"), comments=True)
        assert main([argument.replace("zoo:", "zoo:no-") for argument in arguments]) == 2
        assert re.search("no such file|no run is here|no such set", capsys.readouterr().err)


def test_every_look_at_the_zoo_shown_shows_something(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^python main.py (zoo.*)", SHELL, re.MULTILINE)
    assert len(lines) > 1
    for line in lines:
        assert main(shlex.split(line, comments=True)) == 0
        assert "digits-ipc1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "printed"),
    [
        (1, r"torch\.Size\(\[10, 1, 8, 8\]\) torch\.Size\(\[10, 10\]\) torch\.Size\(\[10, 10\]\)\n"),
        (2, r"\d+\.\d% of all 1,797 real digits\n"),
    ],
    ids=["README", "evaluation"],
)
def test_the_python_examples_run_as_they_stand(number: int, printed: str, finished_run: Path, tmp_path: Path) -> None:
    assert len(PYTHON) == 3
    (tmp_path / "save" / "digits").mkdir(parents=True)
    shutil.copytree(finished_run, tmp_path / "save" / "digits" / "quickstart")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PYTHON[number]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert re.fullmatch(printed, done.stdout)


def test_a_network_is_trained_on_the_zoo_in_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(re.findall(r"^\w.* = |^print", PYTHON[0], re.MULTILINE)) == 3
    exec(compile(PYTHON[0], "README.md", "exec"), {})
    assert re.fullmatch(r"9\d\.\d% of the real test images\n", capsys.readouterr().out)


def test_every_script_and_benchmark_named_is_there() -> None:
    names = set(re.findall(r"(?:bash|python) ((?:scripts|benchmarks|tests)/[\w/]+\.(?:sh|py))", TEXT))
    assert {"scripts/quickstart.sh", "benchmarks/metagrad.py", "tests/helpers/gate.py"} <= names
    assert [name for name in names if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([\w/]+\.md)", PAGES[0].read_text()))
    assert {str(page.relative_to(ROOT)) for page in PAGES[1:]} <= linked


def test_the_tables_are_those_of_results_and_cards() -> None:
    done = subprocess.run([sys.executable, "benchmarks/readme_tables.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run: python benchmarks/readme_tables.py"
