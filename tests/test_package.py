"""What `pip install .` installs: built into a wheel, unpacked elsewhere and run from another folder."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import framework

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "main.py", "framework")
PRE_COMMIT = ROOT / ".pre-commit-config.yaml"
OPTIONAL = {"datasets", "huggingface_hub", "pyarrow", "timm"}
DISTRIBUTIONS = {"PIL": "pillow"}


def copy_of_the_sources(folder: Path) -> Path:
    """What a build reads, so that it leaves nothing in the repository."""
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built with the setuptools that is installed, so without a network."""
    sources, out = copy_of_the_sources(tmp_path_factory.mktemp("sources")), tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(sources)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def needs(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def declared() -> dict[str, Requirement]:
    return needs(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


def test_the_wheel_holds_main_and_every_file_of_framework(wheel: zipfile.ZipFile) -> None:
    files = [path for path in (ROOT / "framework").rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert any(path.name == "page.html" for path in files)
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == {"main.py", *(str(path.relative_to(ROOT)) for path in files)}


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    about = metadata(wheel)
    assert (about["Name"], about["Version"]) == ("at-bptt", framework.__version__)
    assert about["Requires-Python"] == ">=3.11"
    assert "# AT-BPTT" in about.get_payload()
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(name).decode())
    assert dict(entries["console_scripts"]) == {"at-bptt": "main:console"}


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--epochs", "none"], 2)])
def test_the_installed_command_runs_from_another_folder(
    wheel: zipfile.ZipFile, tmp_path: Path, arguments: list[str], code: int
) -> None:
    """As the script that pip writes does: import ``console`` and call it."""
    wheel.extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    program = "import sys, main; sys.argv[0] = 'at-bptt'; print(main.__file__); sys.stdout.flush(); main.console()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site" / "main.py"))
    assert ("--num_per_class" in done.stdout) == (code == 0)
    assert ("--epochs" in done.stderr) == (code == 2)


def test_the_dependencies_are_what_the_package_imports() -> None:
    imported = set()
    for path in [ROOT / "main.py", *(ROOT / "framework").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    imported -= {*sys.stdlib_module_names, *OPTIONAL, "framework", "main"}
    assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported} <= set(declared())


def test_the_pinned_versions_are_allowed_by_the_package() -> None:
    pinned = needs((ROOT / "requirements.txt").read_text().splitlines())
    for name, requirement in declared().items():
        (pin,) = pinned[name].specifier
        assert pin.operator in ("==", "===")
        assert requirement.specifier.contains(pin.version), f"{requirement} against {pinned[name]}"


def test_pre_commit_runs_the_versions_that_the_tests_run() -> None:
    pinned = needs((ROOT / "requirements-dev.txt").read_text().splitlines())
    hooks = re.findall(r"repo: \S+/(?:mirrors-|)(mypy|ruff)(?:-pre-commit|)\n\s+rev: v(\S+)", PRE_COMMIT.read_text())
    assert {name: f"=={version}" for name, version in hooks} == {
        name: str(pinned[name].specifier) for name in ("mypy", "ruff")
    }


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {framework.__version__}\n" in (ROOT / "CITATION.cff").read_text()
