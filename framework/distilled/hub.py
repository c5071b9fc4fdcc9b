"""A set on the Hugging Face hub: ``main.py export --to hf --push USER/NAME``."""

import os
from pathlib import Path
from typing import Any

from framework.distilled.names import HUB_ENDPOINT, HUB_TOKEN
from framework.errors import UserError, one_line


def open_hub() -> Any:
    """The hub's ``HfApi``, with the token of the variable ``HUB_TOKEN``.

    Raises:
        UserError: the package is not there.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UserError("--push needs the package: pip install huggingface_hub, or leave it out") from error
    return HfApi(endpoint=os.environ.get(HUB_ENDPOINT) or None, token=os.environ[HUB_TOKEN])


def push(hub: Any, folder: Path, name: str) -> str:
    """Put a folder, as ``export --to hf`` writes it, into the data set ``USER/NAME``, which is made if need be.

    Returns:
        The data set's address.

    Raises:
        UserError: the hub refuses, or cannot be reached; the folder stays.
    """
    try:
        address = hub.create_repo(name, repo_type="dataset", exist_ok=True)
        hub.upload_folder(folder_path=folder, repo_id=name, repo_type="dataset", commit_message="Distilled set")
    except Exception as error:  # the package's own, and those of whatever it speaks HTTP with
        raise UserError(
            f"--push {name}: {one_line(error)}; {folder} is written, and put there by: hf upload {name} {folder} "
            "--repo-type dataset"
        ) from error
    return str(address)
