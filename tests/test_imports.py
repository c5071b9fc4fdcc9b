"""What is imported when, and by whom: nobody waits for libraries that are not needed; imports go down the floors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from advised import write_run
from cli import ROOT

HEAVY = ("torch", "numpy", "torchvision", "scipy", "matplotlib", "sklearn", "h5py", "PIL", "tensorboard", "higher",
         "kornia", "jinja2", "psutil", "pyarrow", "datasets", "pandas", "timm")  # fmt: skip


def imported(program: str) -> set[str]:
    """Which of the heavy packages a program imports."""
    ask = f"{program}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules], sep='\\n')"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


VERBS = ("evaluate", "export", "report", "leaderboard", "advise")
"""Those that read sets and runs; ``zoo`` shows what there is."""
MISTAKES = [
    ["--epoch", "x"], ["--windw", "3"], ["--window", "300"], *([verb, "x", "--widht", "3"] for verb in VERBS),
    *([verb] for verb in VERBS), ["evaluate", "x", "--recipe", "cake"], ["evaluate", "x", "--eval_arch", "cake"],
    ["evaluate", "x", "--eval_steps", "5", "3"], ["evaluate", "x", "--dataset", "x"], ["export", "x", "--to", "cake"],
    ["export", "x", "--to", "pt", "--ddranking_dataset", "CIFAR10"], ["report", "x", "--output", "page.pdf"],
    ["evaluate", "two\nlines"], ["evaluate", "x", "--labels", "hard", "hard"], ["leaderboard", "x"],
    ["evaluate", "x", "--teacher_arch", "vit"], ["advise", "x", "--since", "-1"],
    ["zoo", "no-such-set"], ["zoo", "--commands"],
]  # fmt: skip
QUICK = [["--help"], *([verb, "--help"] for verb in VERBS), ["zoo"]]


@pytest.mark.parametrize("arguments", [*QUICK, *MISTAKES], ids=" ".join)
def test_help_lists_and_mistakes_do_not_wait_for_pytorch(arguments: list[str]) -> None:
    program = f"""
import contextlib, io
from main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try:
        code = main({arguments})
    except SystemExit as stop:
        code = stop.code
assert code == {0 if arguments in QUICK else 2}
"""
    assert imported(program) == set()


def test_advice_needs_numpy_alone(tmp_path: Path) -> None:
    write_run(tmp_path, [2.0, 1.0, 1.0])
    program = f"""
import contextlib, io
from main import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main(['advise', {str(tmp_path)!r}]) == 0
"""
    assert imported(program) <= {"numpy"}


def test_a_distilled_set_is_opened_with_pytorch_and_safetensors_alone(finished_run: Path) -> None:
    of_pytorch = imported("import torch, safetensors.torch")
    program = f"""
from framework import load_distilled
distilled = load_distilled({str(finished_run)!r})
next(distilled.batches()), distilled.network(), distilled.preprocess
"""
    assert imported(program) <= of_pytorch


def test_digits_need_neither_torchvision_nor_scikit_learn() -> None:
    """Each takes as long to import as PyTorch, in every process of a run."""
    program = "import framework.base\nfrom framework.data.registry import open_source\nfrom pathlib import Path\n"
    program += "open_source('digits', Path(), 8)"
    assert not {"torchvision", "sklearn", "pandas"} & imported(program)


# From the top floor down; a file may import from its own floor and from those below it.
FLOORS = (
    ("main",),
    ("base", "train_experts", "commands"),
    ("evaluation",),
    ("report",),
    ("dry_run", "trial", "assemble", "distilled"),
    ("run",),
    ("config", "distill_higher"),
    ("outer",),
    ("data", "inner"),
    ("networks", "zoo", "records", "machine", "files", "flags", "output", "rng", "errors"),
)
NAMES_ALONE = {
    "data.registry", "networks.registry", "networks.spec", "inner.names", "outer.policies.registry",
    "distilled.names", "evaluation.names",
}  # fmt: skip
"""Tables of names that need no library: everybody may read them."""


def floor(module: str) -> int:
    room = module.partition(".")[0]
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def imports_of(file: Path) -> set[str]:
    """The modules of ours that a file imports at its top or anywhere inside, without ``framework.``."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "framework":
            inside = node.module.partition(".")[2]
            found |= {f"{inside}.{alias.name}".strip(".") for alias in node.names}
    return found


FILES = [path for path in (ROOT / "framework").rglob("*.py") if path.name != "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT / "framework")))
def test_imports_go_down_never_up(file: Path) -> None:
    own = ".".join(file.relative_to(ROOT / "framework").with_suffix("").parts)
    for target in imports_of(file):
        if target.rpartition(".")[0] not in NAMES_ALONE and target not in NAMES_ALONE:
            assert floor(target) >= floor(own), f"{own} imports {target}"


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT / "framework")))
def test_below_the_configuration_nobody_knows_flags(file: Path) -> None:
    own = ".".join(file.relative_to(ROOT / "framework").with_suffix("").parts)
    if floor(own) > floor("config"):
        assert not any(target.startswith(("config", "assemble")) for target in imports_of(file))


def test_the_worker_knows_methods_not_windows() -> None:
    """What ``base.py`` imports: no engine, no policy, no data reader."""
    banned = ("outer.engines", "outer.policies", "data", "inner", "distill_higher")
    assert not [target for target in imports_of(ROOT / "framework" / "base.py") if target.startswith(banned)]
