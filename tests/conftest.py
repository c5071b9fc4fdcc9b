"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images: ``$ATBPTT_DATA``, else ``../shared/data`` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ATBPTT_DATA") or beside)
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"no real images in {folder}: set ATBPTT_DATA to a folder with MNIST/raw")
    return folder
