"""The benchmark scripts run the published commands, and pass extra flags through."""

import os
import subprocess
from pathlib import Path

import pytest
from commands import AT_BPTT, COMMANDS, RAT_BPTT, Command

from framework.config import parse

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
PUBLISHED = {
    "cifar10_ipc10.sh": AT_BPTT["cifar10-ipc10"],
    "cifar100_ipc10.sh": AT_BPTT["cifar100-ipc10"],
    "tiny_imagenet_ipc10.sh": AT_BPTT["tiny-imagenet-ipc10"],
    "rat_bptt/cifar10_ipc10.sh": RAT_BPTT["cifar10-ipc10"],
    "rat_bptt/cifar100_ipc10.sh": RAT_BPTT["cifar100-ipc10"],
    "rat_bptt/tiny_imagenet_ipc10.sh": RAT_BPTT["tiny-imagenet-ipc10"],
    "rat_bptt/cifar100_ipc1_fixed.sh": RAT_BPTT["cifar100-ipc1"],
    "rat_bptt/tiny_imagenet_ipc10_fixed.sh": RAT_BPTT["tiny-imagenet-fixed"],
    "rat_bptt/imagenet_ipc1_fixed.sh": RAT_BPTT["imagenet-ipc1"],
}
BENCHMARKS = sorted(str(path.relative_to(SCRIPTS)) for path in SCRIPTS.rglob("*_ipc*.sh"))


def flags_of(script: str, *extra: str) -> list[str]:
    """What the script would hand to main.py."""
    environment = {**os.environ, "PYTHON": "echo"}
    command = ["bash", str(SCRIPTS / script), *extra]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert output[0] == "main.py"
    return output[1:]


@pytest.mark.parametrize("script", PUBLISHED)
def test_a_published_command_is_run_as_it_was_published(script: str) -> None:
    assert parse(flags_of(script)) == parse(PUBLISHED[script].arguments)


@pytest.mark.parametrize("script", BENCHMARKS)
def test_every_benchmark_parses_without_a_warning_and_takes_extra_flags(script: str) -> None:
    config, warnings = parse(flags_of(script, "--epochs", "2", "--batch_size", "7"))
    assert warnings == []
    assert (config.epochs, config.batch_size) == (2, 7)
    name = Path(script).stem.split("_ipc")[0].replace("tiny_imagenet", "tiny-imagenet-200")
    assert config.dataset == name
    assert config.num_per_class == int(Path(script).stem.split("_ipc")[1].split("_")[0])
    assert config.policy == ("at-bptt" if "/" not in script else "fixed" if "fixed" in script else "rat-bptt")


def test_there_is_a_script_for_every_benchmark() -> None:
    expected = {f"{name}_ipc{ipc}.sh" for name in ("cifar10", "cifar100", "tiny_imagenet") for ipc in (1, 10, 50)}
    assert expected | {"imagenet_ipc1.sh", "imagenet_ipc10.sh"} <= set(BENCHMARKS)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_readme_shows_every_example_command(command: Command) -> None:
    readme = (SCRIPTS.parent / "README.md").read_text().replace("\\\n", " ")
    assert command.line in " ".join(readme.split())
