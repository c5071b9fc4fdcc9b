"""Fixtures that several test modules share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from cli import TINY
from hypothesis import HealthCheck, settings
from tries import take

from main import main

# How long examples take says more about the machine's other work than about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those marked as long come first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With ``SKIP_NOTHING=1`` a test that would be skipped fails, and says what it lacks."""
    report = yield
    if report.skipped and os.environ.get("SKIP_NOTHING") == "1":
        assert isinstance(report.longrepr, tuple)
        report.outcome, report.longrepr = "failed", f"{report.longrepr[2]} (SKIP_NOTHING=1 lets no test be skipped)"
    return report


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images: ``$ATBPTT_DATA``, else ``../shared/data`` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ATBPTT_DATA") or beside)
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"no real images in {folder}: set ATBPTT_DATA to a folder with MNIST/raw")
    return folder


@pytest.fixture(scope="session")
def jpeg_cifar10(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``cifar10-jpeg.npz``: CIFAR-10 re-encoded as JPEG, every test image and 1,000 for training."""
    if not (real_data / "cifar10_jpeg.tar.xz").exists():
        pytest.skip(f"no cifar10_jpeg.tar.xz in {real_data}")
    path = tmp_path_factory.mktemp("jpeg") / "cifar10-jpeg.npz"
    few = ["--per-class", "100", "--npz", str(path)]
    subprocess.run([sys.executable, str(real_data / "unpack.py"), "cifar10", *few], check=True)
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests that write into it copy it first."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main([*TINY, "--epochs", "2", "--baselines", "random", "full", "--save_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run's folder."""
    shutil.copytree(finished_run, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """What a test counts goes into the report as its property ``tries``."""
    take()  # what a fixture has counted is another test's
    try:
        return (yield)
    finally:
        if count := take():
            item.user_properties.append(("tries", count))
