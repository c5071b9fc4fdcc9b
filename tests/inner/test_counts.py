"""Numbers of images of each class: the file that gives them, what is refused, and places in a set."""

import json
from pathlib import Path

import pytest
from cli import refused
from hypothesis import given
from hypothesis import strategies as st

from framework.config.bptt import Config, parse
from framework.errors import UserError
from framework.inner.counts import Counts, counts_of, images_per_class, text_of

NAMES = ("a cat", "dog", "b#1")


def written(text: str, folder: Path) -> str:
    (folder / "n.txt").write_text(text, encoding="utf-8")
    return str(folder / "n.txt")


# ---- the flag --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a cat 3\ndog 1\nb#1 12\n",
        "# numbers\n\n  a cat,3  # most\ndog , 1\nb#1\t12",
        "\ufeffb#1 12\r\ndog 1\r\na cat 3\r\n",
    ],
)
def test_a_file_has_a_line_for_each_class(text: str, tmp_path: Path) -> None:
    asked = images_per_class(written(text, tmp_path))
    assert asked == {"a cat": 3, "dog": 1, "b#1": 12}
    assert counts_of(asked, NAMES) == Counts((3, 1, 12))
    assert counts_of(asked, NAMES[::-1]) == Counts((12, 1, 3))
    assert text_of(asked) == "1-12 (16 images)"
    assert images_per_class(json.dumps(asked)) == asked


def test_classes_are_given_by_name_or_by_index() -> None:
    assert counts_of({"2": 5, "0": 1, "1": 2}, NAMES) == Counts((1, 2, 5))
    assert counts_of({"1": 7, "0": 9}, ("1", "0")) == Counts((7, 9)), "names come first"
    assert counts_of({"1": 7, "0": 9}, ("1", "2")) == Counts((9, 7)), "these are no names"


def test_a_whole_number_is_as_many_of_each() -> None:
    assert images_per_class("10") == 10
    assert counts_of(10, NAMES) == Counts((10, 10, 10)) == Counts.equal(3, 10)
    assert text_of(10) == text_of({"a": 10, "b": 10}) == Counts((10, 10)).text == "10"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat\n", "n.txt: line 1 is 'cat'; give a class and its number of images, 1 or more"),
        ("cat 1\ndog 0\n", "n.txt: line 2 is 'dog 0'; give"),
        ("cat -1\n", "n.txt: line 1 is 'cat -1'; give"),
        ("cat 1.5\n", "n.txt: line 1 is 'cat 1.5'; give"),
        ("cat 1\ndog 2\n\ncat 1\n", "n.txt: line 4 gives class cat again; give each class once"),
        ("# nothing\n", "n.txt: no class is there"),
    ],
)
def test_a_wrong_file_is_told_by_its_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["--num_per_class", written(text, tmp_path)], capsys)
    assert error.startswith("main.py: error: argument --num_per_class: /") and said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere.txt", "nowhere.txt: neither a whole number nor a file"),
        ("1.5", "1.5: neither a whole number nor a file"),
        ("tests", "tests: cannot be read"),
        ('{"a": 1', "no object of classes and numbers"),
        ('{"a": 0}', "one of at least 1 for each class"),
        ('{"a": []}', "one of at least 1 for each class"),
        ("{}", "one of at least 1 for each class"),
    ],
)
def test_a_wrong_value_is_told(value: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(["--num_per_class", value], capsys)
    assert error.startswith(f"main.py: error: argument --num_per_class: {value[:1]}") and said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"a cat": 1, "dog": 1}, "no number for class b#1; give each of the 3 classes once"),
        ({"a cat": 1, "dog": 1, "b#1": 1, "cow": 1}, "the data have no class cow"),
        ({"0": 1, "1": 1}, "the data have no class 0"),
        ({"0": 1, "1": 1, "2": 1, "3": 1}, "the data have no class 0"),
        ({"0": 1, "dog": 1, "2": 1}, "the data have no class 0"),
    ],
)
def test_classes_that_are_not_the_datas_are_told(asked: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=f"^--num_per_class: {said}"):
        counts_of(asked, NAMES)


def test_a_configuration_holds_the_numbers_and_not_the_file(tmp_path: Path) -> None:
    config, _ = parse(["--num_per_class", written("0 1\n1 3", tmp_path), "--batch_per_class", "2"])
    assert json.loads(config.to_json())["num_per_class"] == {"0": 1, "1": 3}
    assert Config.from_json(json.loads(config.to_json()), tmp_path) == config
    assert config.folder.name.startswith("IPC_1-3_4_images_")
    assert (config.inner_batch(2), config.block_epochs, config.block_size) == (3, (100,), 3)
    for wrong in ("3", [1, 3], {"0": 0}, {"0": "1"}, None, True, 1.0):
        with pytest.raises(UserError, match="flags are damaged"):
            Config.from_json({"num_per_class": wrong}, tmp_path)


def test_other_numbers_are_another_configuration() -> None:
    one, two = Config(num_per_class={"0": 1, "1": 3}), Config(num_per_class={"1": 3, "0": 2})
    assert two.differences(one) == ["--num_per_class of class 0 was 1 and is 2"]
    assert Config(num_per_class=3).differences(one) == ["--num_per_class was 1-3 (4 images) and is 3"]
    assert Config(num_per_class={"1": 3, "0": 1}).differences(one) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--boost_block 1", "--boost_block 1: "),
        ("--task_sampler_nc 1", "--task_sampler_nc 1 needs as many images of each class"),
        ("--psp_patches 2", "--psp_patches 2 needs as many images of each class"),
        ("--batch_per_class 4", "--batch_per_class 4 is larger than --num_per_class 1-3 (4 images)"),
    ],
)
def test_what_needs_as_many_of_each_class_is_refused(flags: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse(["--num_per_class", '{"0": 1, "1": 3}', *flags.split()])
    assert str(error.value).startswith(said)


# ---- places ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 5), st.integers(0, 5))
def test_parts_and_places_are_those_of_a_list_for_each_class(numbers: list[int], start: int, length: int) -> None:
    counts, classes = Counts(tuple(numbers)), []
    for k, number in enumerate(numbers):
        classes += [(k, place) for place in range(number)]
    assert counts.classes == [k for k, _ in classes]
    assert counts.total == len(classes)
    inside = [(k, place) for k, place in classes if start <= place < start + length]
    part = counts.part(start, start + length)
    assert part.classes == [k for k, _ in inside]
    rows = counts.rows([range(number)[start : start + length] for number in numbers])
    assert [classes[row] for row in rows] == inside
