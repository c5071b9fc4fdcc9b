"""The zoo: cards and files agree, sets can be made again, figures hold, and ``zoo:NAME`` stands where a set is read."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli import ROOT, TINY, refused
from scipy.special import stdtrit
from torch import Tensor, nn

from framework import load_distilled
from framework.config.registry import parse
from framework.data.readers import DEBIAN_FASHION
from framework.distilled.formats import write_safetensors
from framework.errors import UserError
from framework.files import read_json, write_json
from framework.records import Judgement, read_record
from framework.report import zoo
from framework.zoo import cards
from main import main
from scripts import zoo_add

NAMES = cards.names()
OWN = "digits-ipc1"  # a set whose real images are in the package


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one set that a test may change; the current folder is an empty one."""
    for folder in ("zoo", "here"):
        (tmp_path / folder).mkdir()
    for path in cards.FOLDER.glob(f"{OWN}.*"):
        shutil.copy(path, tmp_path / "zoo")
    monkeypatch.setattr(cards, "FOLDER", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "zoo"


# ---- what is there ---------------------------------------------------------------------------------


def test_every_file_has_its_card_and_all_are_small() -> None:
    suffixes = (".json", ".safetensors")
    files = [path for path in cards.FOLDER.iterdir() if path.suffix in suffixes]
    assert OWN in NAMES
    assert {path.name for path in files} == {
        f"{name}{suffix}" for name in NAMES for suffix in (".json", ".safetensors")
    }
    assert sum(path.stat().st_size for path in files) < 5_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_its_file_holds(name: str) -> None:
    card, distilled = cards.read_card(name), load_distilled(f"zoo:{name}")
    c = distilled.config
    assert distilled.source == Path(f"zoo:{name}")
    assert (card.images, card.per_class) == (len(distilled.images), distilled.per_class)
    assert name == f"{card.dataset.removeprefix('npz-')}-ipc{card.per_class}{'-ftd' if card.recipe == 'mtt' else ''}"
    assert (card.dataset, card.method, card.arch, card.seed) == (c.dataset_label, distilled.method, c.arch, c.seed)
    assert (card.recipe, card.select, card.best_epoch) == (c.recipe, c.select, distilled.provenance["epoch"])
    assert set(card.scores) == {card.recipe, "dc"}
    soft = any(row.sort().values.tolist() != [0.0] * (len(row) - 1) + [1.0] for row in distilled.labels)
    assert card.learnt_labels == soft
    assert all((score.hard is not None) == soft for score in card.scores.values())
    classes = len(distilled.class_names)
    decoder = 32 * sum(tensor.numel() for tensor in distilled.preprocess.tensors().values())
    label = 32 * classes if soft else math.ceil(math.log2(classes))
    assert card.bits_per_class == (32 * distilled.images.numel() + card.images * label + decoder) / classes


@pytest.mark.parametrize("name", NAMES)
def test_a_cards_commands_are_understood_and_those_of_its_set(name: str) -> None:
    card = cards.read_card(name)
    parsed = [parse(shlex.split(line)[2:]) for line in card.commands]
    assert [warnings for _, warnings in parsed] == [[]] * len(card.commands)
    last = parsed[-1][0]
    assert last.save_dir == f"save/zoo/{name}"
    assert zoo_add.portable(last) == load_distilled(f"zoo:{name}").config
    for recipe, score in card.scores.items():
        assert f"evaluate zoo:{name} --recipe {recipe}" in score.command
        assert score.command.endswith(f" --num_train_eval {score.networks}")


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_networks_trained_again_are_as_good_as_the_card_says(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Other networks by the card's own recipe: their mean lies where 99 % of such means do, by the card's deviation.

    Student's prediction interval for the mean of new networks.
    """
    card = cards.read_card(name)
    own, networks, flags = card.scores[card.recipe], 3 if name == OWN else 1, []
    if card.dataset == "npz-cifar10-jpeg":
        flags = ["--root", str(request.getfixturevalue("jpeg_cifar10").parent)]
    elif card.dataset == "fashion-mnist":
        if not DEBIAN_FASHION.is_dir():
            pytest.skip(f"no {DEBIAN_FASHION}: install Debian's package dataset-fashion-mnist")
    elif card.dataset != "digits":
        flags = ["--root", str(request.getfixturevalue("real_data"))]
    flags += ["--eval_steps", str(own.steps)] if card.recipe == "inner" else []
    flags += ["--num_train_eval", str(networks), "--seed", "1", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main(["evaluate", f"zoo:{name}", *flags]) == 0
    row = read_json(tmp_path / "out" / f"{card.recipe}.json")["results"][card.arch]["distilled"]
    assert own.deviation is not None
    error = own.deviation * math.sqrt(1 / networks + 1 / own.networks)
    assert abs(row["top1"] - own.accuracy) < stdtrit(own.networks - 1, 0.995) * error
    assert own.random is not None and row["top1"] > own.random


# ---- main.py zoo -----------------------------------------------------------------------------------


def test_the_list_has_every_set_with_its_accuracies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    table = capsys.readouterr().out
    for name in NAMES:
        (row,) = (line for line in table.splitlines() if f"`zoo:{name}`" in line)
        for score in cards.read_card(name).scores.values():
            assert f" {100 * score.accuracy:.1f} ± " in row


def test_the_list_names_the_device_of_a_set_that_was_made_elsewhere() -> None:
    here = replace(cards.read_card(OWN), device="a processor")
    lines = zoo.table({"a": here, "b": replace(here, device="a GPU"), "c": here}).splitlines()
    assert [" on a GPU |" in line for line in lines[2:5]] == [False, True, False]
    assert "time on a processor, where no other is named" in lines[-1]


def test_a_card_is_shown_and_its_commands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    card = cards.read_card(OWN)
    assert main(["zoo", f"zoo:{OWN}"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in (card.licence, card.data, card.checksum, card.device, *card.commands))
    assert main(["zoo", OWN, "--commands"]) == 0
    assert capsys.readouterr().out.splitlines() == card.commands


def test_commands_of_no_set_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--commands: of which set?" in refused(["zoo", "--commands"], capsys)


# ---- zoo:NAME --------------------------------------------------------------------------------------

READERS = {
    "evaluate": ["evaluate", "zoo:{}"],
    "export": ["export", "zoo:{}", "--to", "pt"],
    "--init": [*TINY, "--init", "zoo:{}", "--save_dir", "run"],
    "--ckptname": [*TINY, "--ckptname", "zoo:{}", "--dry_run"],
}


@pytest.mark.parametrize("reader", READERS)
def test_an_unknown_set_is_one_line_with_those_there(
    reader: str, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused([word.format("no-such") for word in READERS[reader]], capsys)
    assert f"zoo:no-such: no such set; the zoo has {OWN}" in error
    assert error.count("\n") == 1
    assert list(Path().iterdir()) == []
    with pytest.raises(UserError, match=f"the zoo has {OWN}"):
        load_distilled("zoo:../zoo/digits-ipc1")


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_set_is_one_line_with_file_and_checksum(
    reader: str, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shelf / f"{OWN}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    error = refused([word.format(OWN) for word in READERS[reader]], capsys)
    assert f"{path}: damaged, its checksum is " in error
    assert cards.read_card(OWN).checksum in error
    assert error.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_a_set_without_its_file_and_a_damaged_card_are_one_line(shelf: Path) -> None:
    (shelf / f"{OWN}.safetensors").unlink()
    with pytest.raises(UserError, match=rf"{OWN}\.safetensors: cannot be read .*install the package again"):
        load_distilled(f"zoo:{OWN}")
    card = read_json(shelf / f"{OWN}.json")
    write_json(shelf / f"{OWN}.json", card | {"seed": "three"})
    with pytest.raises(UserError, match=rf"{OWN}\.json: damaged"):
        load_distilled(f"zoo:{OWN}")


def test_what_is_made_of_a_set_goes_into_the_current_folder(shelf: Path) -> None:
    before = sorted(shelf.iterdir())
    few = ["--eval_steps", "2", "--num_train_eval", "1", "--device", "cpu"]
    assert main(["evaluate", f"zoo:{OWN}", *few]) == 0
    assert main(["export", f"zoo:{OWN}", "--to", "npz"]) == 0
    assert main(["leaderboard", f"zoo:{OWN}", "--out", "board"]) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["board", f"zoo-{OWN}", f"zoo-{OWN}.evaluation"]
    exported = load_distilled(Path(f"zoo-{OWN}", "exports", "distilled.npz"))
    assert torch.equal(exported.images, load_distilled(f"zoo:{OWN}").images)
    (row,) = json.loads(Path("board", "leaderboard.json").read_text())
    assert (row["set"], row["per_class"]) == (f"zoo:{OWN}", 1)
    assert sorted(shelf.iterdir()) == before


def test_a_run_starts_from_a_set(tmp_path: Path) -> None:
    small = ["--num_train_eval", "1", "--eval_steps", "2", "--save_dir", str(tmp_path / "run")]
    assert main([*TINY, *small, "--init", f"zoo:{OWN}", "--eval_only"]) == 0
    made, given = load_distilled(tmp_path / "run"), load_distilled(f"zoo:{OWN}")
    assert torch.equal(made.images, given.images)


# ---- in Python -------------------------------------------------------------------------------------


def test_a_network_is_trained_as_by_hand() -> None:
    distilled = load_distilled(f"zoo:{OWN}")
    trained = distilled.trained_network(steps=3, seed=5)
    fresh = distilled.trained_network(steps=0, seed=5)
    assert not trained.training
    optimizer = torch.optim.Adam(fresh.train().parameters(), lr=distilled.config.inner_lr)
    for images, weights in distilled.batches(3, seed=5):
        optimizer.zero_grad()
        (-(weights * fresh(images).log_softmax(1)).sum(1)).mean().backward()
        optimizer.step()
    for one, other in zip(trained.parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    other = distilled.trained_network(steps=0, seed=6)
    assert not torch.equal(next(iter(other.parameters())), next(iter(distilled.trained_network(steps=0).parameters())))


class Always(nn.Module):
    """Answers with one class, whatever the image."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, images: Tensor) -> Tensor:
        return F.one_hot(torch.full((len(images),), self.number), 10).float()


def test_accuracy_is_the_share_of_real_test_images() -> None:
    distilled = load_distilled(f"zoo:{OWN}")
    with np.load(ROOT / "framework" / "data" / "digits.npz") as file:
        labels = file["labels"][file["test"]].tolist()
    counts = [labels.count(number) / 360 for number in range(10)]
    assert [distilled.accuracy(Always(number)) for number in range(10)] == pytest.approx(counts)
    turned = replace(distilled, class_names=distilled.class_names[::-1])
    assert turned.accuracy(Always(0)) == pytest.approx(counts[9])
    with pytest.raises(UserError, match="its classes are not the data's"):
        replace(distilled, class_names=tuple("abcdefghij")).accuracy(Always(0))


# ---- scripts ---------------------------------------------------------------------------------------


def given_again(tmp_path: Path, *arguments: str) -> list[list[str]]:
    """The command lines that scripts/zoo.sh gives, without those that only ask for a card's commands."""
    python = tmp_path / "python"
    asked = f"""import sys
from pathlib import Path
from framework.zoo import cards
from main import main
cards.FOLDER = Path('{cards.FOLDER}')
sys.exit(main(sys.argv[1:]))"""
    python.write_text(f"""#!/usr/bin/env bash
if [ "$2" = zoo ]; then exec "{sys.executable}" -c "{asked}" "${{@:2}}"; fi
printf '%s\\t' "$@"; echo
""")
    python.chmod(0o755)
    command = ["bash", str(ROOT / "scripts" / "zoo.sh"), *arguments]
    environment = {**os.environ, "PYTHON": str(python)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [line.split("\t")[:-1] for line in done.stdout.splitlines()]


def test_a_set_is_made_again_by_its_cards_commands(tmp_path: Path) -> None:
    name = "mnist-ipc1" if "mnist-ipc1" in NAMES else OWN
    lines = given_again(tmp_path, name, "--root", "some where", "--save_dir", "x", "--seed", "3")
    expected = [shlex.split(line)[1:] for line in cards.read_card(name).commands]
    expected = [["some where" if word == "ROOT" else word for word in words] for words in expected]
    expected[-1] += ["--save_dir", "x", "--seed", "3"]
    assert lines == expected


def test_the_script_says_what_is_wrong(tmp_path: Path) -> None:
    for arguments, message in ([], "give the name of a set first"), (["no-such"], "zoo:no-such: no such set"):
        command = ["bash", str(ROOT / "scripts" / "zoo.sh"), *arguments]
        environment = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stdout == ""


def add(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["zoo_add.py", *arguments])
    return zoo_add.main()


def test_a_finished_run_becomes_a_set_of_the_zoo(
    finished_run: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.evaluation.recipes.DC_EPOCHS", 3)
    before = "python main.py buffer --dataset digits --buffer_path save/zoo/tiny-experts"
    arguments = [str(finished_run), "tiny", "--folder", str(shelf), "--before", before, "--before_seconds", "3600"]
    assert add(arguments, monkeypatch) == 0
    card, made, run = cards.read_card("tiny"), load_distilled("zoo:tiny"), load_distilled(finished_run)
    assert torch.equal(made.images, run.images)
    assert torch.equal(made.labels, run.labels)
    summary = read_json(finished_run / "summary.json")
    assert (card.seed, card.epochs, card.outer_steps) == (0, 2, summary["outer_steps"])
    assert card.hours == pytest.approx(1 + summary["seconds"] / 3600)
    assert card.commands[0] == before
    assert parse(shlex.split(card.commands[1])[2:]) == (replace(made.config, save_dir="save/zoo/tiny"), [])
    for path in shelf.glob("tiny.*"):
        assert str(finished_run).encode() not in path.read_bytes(), "folders of this machine are nobody's business"
    score = card.scores["inner"]
    assert main(["evaluate", str(finished_run), "--baselines", "random", "--output", str(tmp_path / "again")]) == 0
    file = tmp_path / "again" / "inner.json"
    rows = read_record(Judgement, read_json(file), file).results["convnet"]
    own, random = rows["distilled"], rows["random"]
    assert (score.accuracy, score.deviation, score.networks, score.steps) == (
        own.top1, own.top1_std, own.networks, own.steps
    )  # fmt: skip
    assert (score.random, score.random_deviation, score.hard) == (random.top1, random.top1_std, None)
    assert list(Path().iterdir()) == []


def test_a_runs_end_is_the_one_that_it_came_to(
    finished_run: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without end that is resumed with one: the card's command ends there too."""
    monkeypatch.setattr("framework.evaluation.recipes.DC_EPOCHS", 3)
    endless = tmp_path / "endless"
    shutil.copytree(finished_run, endless)
    distilled = load_distilled(endless)
    flags = json.loads(replace(distilled.config, epochs=10**9).to_json())
    earlier = replace(distilled, provenance={**distilled.provenance, "config": flags})
    write_safetensors(earlier.stored(numbers=False), endless / "distilled.safetensors")
    assert add([str(endless), "tiny", "--folder", str(shelf)], monkeypatch) == 0
    assert parse(shlex.split(cards.read_card("tiny").commands[0])[2:])[0].epochs == 2
    assert load_distilled("zoo:tiny").config.epochs == 2


def test_learnt_labels_have_a_figure_of_hard_ones(run: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.evaluation.recipes.DC_EPOCHS", 3)
    distilled = load_distilled(run)
    gen = torch.Generator().manual_seed(0)
    soft = replace(distilled, labels=torch.rand(10, 10, generator=gen) + torch.eye(10))
    zoo_add.write_set(soft, run / "distilled.safetensors")
    assert add([str(run), "soft", "--folder", str(shelf), "--num_train_eval", "1"], monkeypatch) == 0
    card = cards.read_card("soft")
    assert card.learnt_labels
    assert card.bits_per_class > cards.read_card(OWN).bits_per_class
    for recipe, score in card.scores.items():
        command = f"python main.py evaluate zoo:soft --recipe {recipe} --labels learnt hard --baselines random"
        assert score.command == f"{command} --num_train_eval 1"
        assert main([*shlex.split(score.command)[2:], "--output", "again"]) == 0
        rows = read_json(Path("again") / f"{recipe}.json")["results"]["convnet"]
        assert (score.accuracy, score.hard) == (rows["distilled"]["top1"], rows["hard"]["top1"])


MATCHED = ["--dataset", "digits", "--depth", "1", "--width", "8", "--device", "cpu"]


@pytest.fixture(scope="module", params=[0.01, 0.0], ids=["ftd", "mtt"])
def matched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """A run of two iterations on experts of one epoch, their command, and their rho."""
    folder = tmp_path_factory.mktemp("matched")
    where = ["--buffer_path", str(folder / "experts")]
    buffer = ["buffer", *MATCHED, "--num_experts", "2", "--train_epochs", "1", "--rho", str(request.param), *where]
    ftd = ["ftd", *MATCHED, *where, "--expert_epochs", "1", "--max_start_epoch", "1", "--syn_steps", "2"]
    ftd += ["--Iteration", "2", "--num_eval", "2", "--epoch_eval_train", "4", "--save_dir", str(folder / "run")]
    assert main(buffer) == 0
    assert main(ftd) == 0
    return folder / "run", shlex.join(["python", "main.py", *buffer]), request.param


def test_a_set_of_trajectory_matching_has_its_experts_in_its_card(
    matched: tuple[Path, str, float], shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.evaluation.recipes.DC_EPOCHS", 3)
    run, buffer, rho = matched
    arguments = [str(run), "few", "--folder", str(shelf), "--before", buffer, "--before_seconds", "7200"]
    assert add(arguments, monkeypatch) == 0
    card, made = cards.read_card("few"), load_distilled("zoo:few")
    assert card.method == made.method == ("ftd" if rho else "mtt")
    assert made.learnt_lr is not None
    assert card.recipe == "mtt"
    assert card.scores["mtt"].recipe.startswith(f"SGD {made.learnt_lr:g}, ")
    assert "evaluate zoo:few --recipe mtt " in card.scores["mtt"].command
    assert card.hours == pytest.approx(2, abs=0.1)
    for path in shelf.glob("few.*"):
        assert str(run.parent).encode() not in path.read_bytes(), "folders of this machine are nobody's business"
    lines = given_again(tmp_path, "few", "--save_dir", "again")
    assert [words[:2] for words in lines] == [["main.py", "buffer"], ["main.py", "ftd"]]
    assert [main(words[1:]) for words in lines] == [0, 0]
    assert Path("save", "zoo", "few-experts").is_dir()
    assert torch.equal(load_distilled("again").images, made.images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("python main.py --dataset digits", "--before, --before_seconds: a set of main.py ftd has experts; give the"),
        ("{} --width 9", "ConvNetD1W8; give theirs"),
        ("{} --train_epochs 2", "--train_epochs 2, and the set's experts had 1; give their command"),
    ],
    ids=["none", "another network", "others"],
)
def test_experts_that_are_not_the_sets_are_refused(
    given: str, message: str, matched: tuple[Path, str, float], shelf: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, buffer, _ = matched
    before = sorted(shelf.iterdir())
    where = [str(run), "few", "--folder", str(shelf), "--before", given.format(buffer), "--before_seconds", "1"]
    assert add(where, monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(shelf.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", OWN], f"{OWN}.json: is there already"),
        (["{run}", "Tiny"], "Tiny: as a set's name, give small letters and digits"),
        (["{run}", "tiny", "--before", "echo"], "--before echo: give a whole command"),
        (["nowhere", "tiny"], "nowhere: no run is here"),
        (["{unfinished}", "tiny"], "the run has not ended"),
        (["{foreign}", "tiny"], "--data, --licence: say where the images of cifar10 are from"),
    ],
)
def test_what_cannot_be_added_is_one_line(
    arguments: list[str], message: str, run: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "{unfinished}" in arguments:
        (run / "summary.json").unlink()
    if "{foreign}" in arguments:
        write_json(run / "config.json", read_json(run / "config.json") | {"dataset": "cifar10"})
    before = sorted(shelf.iterdir())
    where = [word.format(run=run, unfinished=run, foreign=run) for word in arguments]
    assert add([*where, "--folder", str(shelf)], monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(shelf.iterdir()) == before
