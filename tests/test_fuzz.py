"""Broken flags and broken files: every one either works or gets one clear line and exit code 2.

A longer search: ``FUZZ=20 pytest tests/test_fuzz.py`` tries twenty times as many.
"""

import contextlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from cli import TINY, difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from problems import CPU
from tries import tried

from framework.assemble import bptt as assemble
from framework.config.bptt import DEFAULTS, FLAGS, parse
from framework.data.parts import decode_image
from framework.data.splits import RealData
from framework.errors import UserError
from framework.report import plots
from framework.report.folder import RunFolder
from framework.report.metrics import Reporter
from framework.report.plots import truncation_plot
from framework.run import checkpoint
from framework.run.checkpoint import find_run
from framework.run.distributed import Comm
from main import main

TIMES = int(os.environ.get("FUZZ", "1"))


def fuzzed(examples: int) -> settings:
    """Seeded, so that a test does the same every time; a longer search tries others."""
    fixture = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=fixture,
    )


def outcome(arguments: list[str]) -> tuple[int, str]:
    """Exit code and error output of a command line, run here; any other exception is a failure of the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stop:  # argparse
            code = stop.code if isinstance(stop.code, int) else -1
    return code, err.getvalue()


def assert_works_or_one_line(arguments: list[str]) -> int:
    code, err = outcome(arguments)
    errors = [line for line in err.splitlines() if not line.startswith("main.py: warning: ")]
    assert code in (0, 2), err
    if code == 2:
        assert [line.startswith("main.py: error: ") for line in errors if "error:" in line] == [True], err
        assert err.rstrip().splitlines()[-1].startswith("main.py: error: "), err
    return code


# ---- flags -----------------------------------------------------------------------------------------

VALID_WHOLE, VALID = ["1", "2", "3", "5", "8", "20"], ["0.001", "0.25", "1", "3.5"]
NUMBERS = [
    "0",
    "1",
    "2",
    "3",
    "5",
    "8",
    "40",
    "-1",
    "0.5",
    "1e-9",
    "1e30",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "1_0",
    "",
    "x",
]
NUMBERS += ["0x10", "1" * 30, "9" * 5000, " 4", "٣", "--", "1e-320", "2147483648", "9223372036854775808"]
WORDS = [
    "none",
    "",
    "x",
    "a/b",
    "/",
    "..",
    "é",
    "a\nb",
    "\0",
    "\udcff",
    "%s",
    "{}",
    "a" * 5000,
    "-x",
    "flip",
    "flip_flip",
]
WORDS += ["flip_rotate_scale_crop_color_cutout_mixup", "0.1T", "0T", "2E", "1" * 5000 + "T", "cpu", "cuda:0", "cuda:-1"]
WORDS += ["meta", "tcp://h:1", "tcp://:0", "tcp://h:99999", "file:///x", "/dev/null", "/dev/null/x"]


@st.composite
def flags(draw: st.DrawFn) -> list[str]:
    """A command line of up to eight flags; values are valid, nearly valid, of another flag, or rubbish."""
    line: list[str] = []
    for name in draw(st.lists(st.sampled_from(sorted(FLAGS)), max_size=8)):
        flag, default = FLAGS[name], getattr(DEFAULTS, name)
        line.append(draw(st.sampled_from([f"--{name}" if len(name) > 1 else f"-{name}", *flag.aliases])))
        if isinstance(default, bool):
            continue
        whole = isinstance(default, int) or flag.kind is int
        number = whole or isinstance(default, float)
        likely = [str(choice) for choice in flag.choices or ()] or (
            VALID_WHOLE if whole else VALID if number else WORDS
        )
        value = st.sampled_from(likely if draw(st.integers(0, 4)) else NUMBERS if number else WORDS)
        count = draw(st.integers(0, 3)) if flag.nargs else 1
        line += [draw(st.one_of(value, value, value, st.text(max_size=4))) for _ in range(count)]
    return [argument for argument in line if argument not in ("-h", "--help")]


@fuzzed(150)
@given(flags())
def test_any_command_line_runs_dry_or_gets_one_line(line: list[str]) -> None:
    tried()
    assert_works_or_one_line([*line, "--dry_run"])


# ---- files -----------------------------------------------------------------------------------------


@st.composite
def damages(draw: st.DrawFn, size: int) -> tuple[str, int, int]:
    """What happens to a file of ``size`` bytes: cut off, a bit flipped, a byte overwritten, or a block lost."""
    kind = draw(st.sampled_from(["cut", "flip", "flip", "flip", "byte", "block"]))
    return kind, draw(st.integers(0, size - 1)), draw(st.integers(0, 255))


def damage(content: bytes, how: tuple[str, int, int]) -> bytes:
    tried()
    kind, at, value = how
    match kind:
        case "cut":
            return content[:at]
        case "flip":
            return content[:at] + bytes([content[at] ^ (1 << value % 8)]) + content[at + 1 :]
        case "byte":
            return content[:at] + bytes([value]) + content[at + 1 :]
        case _:
            return content[:at] + bytes(len(content[at : at + 2 * value])) + content[at + 2 * value :]


SMALL = [*TINY, "--epochs", "2", "--batch_size", "1200", "--num_train_eval", "1", "--eval_steps", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    assert outcome([*SMALL, "--save_dir", str(folder)])[0] == 0
    return folder


def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run in an empty folder."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("tensorboard"))
    return folder


def assert_loads_or_one_line(load: Callable[[], object]) -> None:
    said = ""
    try:
        load()
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1


@pytest.mark.parametrize("name", ["last.pt", "previous.pt"])
@fuzzed(100)
@given(st.data())
def test_one_damaged_checkpoint_loses_no_run(name: str, finished: Path, tmp_path: Path, data: Any) -> None:
    """The state that is found is, bit for bit, one that was saved: no damage goes unnoticed."""
    content = (finished / name).read_bytes()
    for file in ("last.pt", "previous.pt"):
        shutil.copy(finished / file, tmp_path / file)
    (tmp_path / name).write_bytes(damage(content, data.draw(damages(len(content)))))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = find_run(tmp_path, parse([*SMALL, "--resume"])[0])
    fell_back = "continuing from" in said.getvalue()
    expected = finished / ("previous.pt" if fell_back else "last.pt")
    assert not fell_back or name == "last.pt"
    assert difference(found, checkpoint.load(expected)) is None


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "config.json", "summary.json", "metrics.jsonl"])
@fuzzed(2)
@given(st.data())
def test_a_run_with_a_damaged_file_is_resumed(name: str, finished: Path, tmp_path: Path, data: Any) -> None:
    content = (finished / name).read_bytes()
    damaged = damage(content, data.draw(damages(len(content))))
    folder = again(finished, tmp_path)
    (folder / name).write_bytes(damaged)
    code = assert_works_or_one_line([*SMALL, "--save_dir", str(folder), "--resume"])
    assert code == 0 or name == "summary.json"


@fuzzed(40)
@given(st.data())
def test_damaged_metrics_can_be_plotted(finished: Path, tmp_path: Path, data: Any) -> None:
    content = (finished / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(damage(content, data.draw(damages(len(content)))))
    records = content.count(b"\n")
    with contextlib.redirect_stderr(io.StringIO()):
        reporter = Reporter(tmp_path, total=2, records=records)
    reporter.close()
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records - len(kept) <= 2 or len(kept) == reporter.records
    with patch.object(plots, "save_figure"):  # drawing takes a second, laying out does not
        truncation_plot(RunFolder(tmp_path).epochs, tmp_path / "x.png")


@pytest.fixture(scope="module")
def digits() -> RealData:
    return assemble.assemble_bptt(parse(SMALL)[0], Comm(), CPU).real


@fuzzed(100)
@given(st.data())
def test_a_damaged_distilled_set_to_start_from(finished: Path, digits: RealData, tmp_path: Path, data: Any) -> None:
    content, path = (finished / "distilled.safetensors").read_bytes(), tmp_path / "damaged.safetensors"
    path.write_bytes(damage(content, data.draw(damages(len(content)))))
    config = parse([*SMALL, "--ckptname", str(path)])[0]
    with patch.object(assemble, "read_data", return_value=digits):
        assert_loads_or_one_line(lambda: assemble.assemble_bptt(config, Comm(), CPU))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tiff"])
@fuzzed(50)
@given(st.data())
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_image(suffix: str, image: bytes, tmp_path: Path, data: Any) -> None:
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(damage(image, data.draw(damages(len(image)))))
    assert_loads_or_one_line(lambda: decode_image(str(path), 8))


@pytest.fixture
def image(suffix: str) -> bytes:
    """A small picture in the format ``suffix``."""
    file = io.BytesIO()
    picture = Image.linear_gradient("L").resize((9, 8)).convert("RGB")
    picture.save(file, format={"jpg": "jpeg"}.get(suffix, suffix))
    return file.getvalue()


class Shell:
    """Runs a command when unpickled without care."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["last.pt", "previous.pt", "set"])
def test_a_malicious_file_runs_nothing(name: str, finished: Path, tmp_path: Path) -> None:
    folder, harm = again(finished, tmp_path), tmp_path / "harm"
    os.system(f"touch {harm}")  # the command does what it should when it is run
    assert harm.exists()
    harm.unlink()
    state = {"config": Shell(f"touch {harm}"), "images": Shell(f"touch {harm}")}
    if name == "set":
        path = tmp_path / "set.pt"
        path.write_bytes(pickle.dumps(state))
        arguments = ["--ckptname", str(path), "--save_dir", str(tmp_path / "new")]
    else:
        (folder / "last.pt").unlink()
        (folder / "previous.pt").unlink()
        checkpoint.save(folder / name, state)
        arguments = ["--save_dir", str(folder), "--resume"]
    assert assert_works_or_one_line([*SMALL, *arguments]) == 2
    assert not harm.exists()
