"""Flags: the golden list, what the ancestors' command lines mean, and every mistake's message."""

import dataclasses
import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from commands import COMMANDS, Command
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.assemble.common import check_against_data
from framework.config.bptt import DEFAULTS, FLAGS, Config, parse
from framework.config.common import build_parser
from framework.errors import UserError
from framework.outer.policies.registry import RECOMMENDED

# ---- the golden list -------------------------------------------------------------------------------

# Names on the command lines of RaT-BPTT and AT-BPTT: each must go on working under its own name.
ANCESTORS = """
--seed --mp_distributed --world_size --rank --dist-url --dist-backend --workers -j --gpu --root --dataset --arch --lr
--inner_optim --outer_optim --inner_lr --label_lr_scale --num_per_class --batch_per_class --task_sampler_nc --window
--minwindow --totwindow --num_train_eval --train_y --batch_size --eps --wd --test_freq --print_freq --start_epoch
--epochs --epoch --ddtype --cctype --zca --wandb --clip_coef --fname --name --comp_aug --comp_aug_real --syn_strategy
--real_strategy --ckptname --limit_train --load_ckpt --complete_random
"""
OURS = """
-h --help --im_size --zca_reg --val_fraction --width --depth --truncation --eval_steps --select --baselines --save_dir
--resume --ckpt_epochs --ckpt_minutes --dry_run --device --nproc --dist_url --dist_backend --engine
--norm --act --pool --psp_patches --psp_lambda --meta_batch --chunk --precision --channels_last --accelerate
--lowrank_rank --lowrank_oversampling --lowrank_power_iters --lowrank_refresh --lowrank_metric --lowrank_random
--data_cache --cache_dir --zca_pixels --pixel_range --hf_image --hf_label --init --patience --trial
--max_bad_steps --deterministic --track --inner_eps_root --iterate_average --clip_norms
--boost_block --boost_beta --boost_epochs
"""
AUTOMATIC = """
-d --d --tau --window_weight --window_rule --early_gain --middle_gain --early_patience --middle_patience --probe_every
--truncation_anchor --norm_scale --late --plateau --reweight --clip_by --pool_size --is_bins --is_decay --is_uniform
--pool_choice --bias --bias_roulette
"""
LEARNT = """
--window_radius --selector_kl --selector_ref_ema --selector_tau_w --cr_lrha --disable_cr_lrha --cr_mode --cr_rank
--cr_oversample --cr_power_iter --cr_delta --cr_period --cr_blend --normalize_syn --no_normalize_syn --freeze_data
--eval_only
"""


def options() -> list[str]:
    return [option for action in build_parser(Config)._actions for option in action.option_strings]


def test_the_set_of_flags_is_exactly_this() -> None:
    assert sorted(options()) == sorted((ANCESTORS + OURS + AUTOMATIC + LEARNT).split())


def test_every_flag_is_explained_in_the_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert not [option for option in options() if option not in text]
    assert not [name for name, flag in FLAGS.items() if len(flag.help.split()) < 3]


# ---- what command lines mean -----------------------------------------------------------------------


def changed(config: Config) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    return {name: value for name, value in vars(config).items() if value != getattr(DEFAULTS, name)}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_example_command_means_this_and_warns_of_nothing(command: Command) -> None:
    config, warnings = parse(command.arguments)
    assert changed(config) == command.resolved
    assert config.policy == command.policy
    assert warnings == []


SWITCHES = [name for name in FLAGS if isinstance(getattr(DEFAULTS, name), bool)]
VALUES = [name for name in FLAGS if name not in SWITCHES and getattr(DEFAULTS, name) not in (None, (), "")]


@pytest.mark.parametrize("name", VALUES)
def test_giving_a_flag_its_default_changes_nothing_and_warns_of_nothing(name: str) -> None:
    value = getattr(DEFAULTS, name)
    values = value if isinstance(value, tuple) else (value,)
    assert parse([f"--{name}", *map(str, values)]) == (DEFAULTS, [])


def test_switches_are_off_until_given() -> None:
    assert not any(getattr(DEFAULTS, name) for name in SWITCHES)
    for names in (set(SWITCHES) - {"zca"}, {"zca"}):  # --zca and --zca_pixels exclude each other
        on, _ = parse([f"--{name}" for name in names])
        assert {name for name in SWITCHES if getattr(on, name)} == names


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--limit_train", {"limit_train": 5000}),
        ("--limit_train 70", {"limit_train": 70}),
        ("-j 3 --dataset imagenet", {"workers": 3, "dataset": "imagenet"}),
        ("--load_ckpt", {"resume": True}),
        ("--epoch 7", {"epochs": 7}),
        ("--eval_steps 5 10", {"eval_steps": (5, 10)}),
        ("--baselines random full", {"baselines": ("random", "full")}),
        ("--baselines", {}),
        ("--lr 1 --lr 2", {"lr": 2.0}),
        ("--world_size 2 --rank 1 --dist-url tcp://h:1 --dist-backend gloo",
         {"world_size": 2, "rank": 1, "dist_url": "tcp://h:1", "dist_backend": "gloo"}),
    ],
)  # fmt: skip
def test_a_line_is_read_as(line: str, expected: dict[str, Any]) -> None:
    config, warnings = parse(line.split())
    assert changed(config) == expected
    assert warnings == []


@pytest.mark.parametrize(
    ("line", "policy"),
    [
        ("", "bptt"),
        ("--ddtype standard --window 20 --totwindow 20", "bptt"),
        ("--ddtype standard --window 19 --totwindow 20", "t-bptt"),
        ("--ddtype standard --window 19 --cctype 2", "t-bptt"),
        ("--ddtype curriculum --window 5", "fixed"),
        ("--ddtype curriculum --cctype 0 --window 20 --totwindow 20", "fixed"),
        ("--ddtype curriculum --cctype 1", "forward"),
        ("--ddtype curriculum --cctype 2", "rat-bptt"),
        ("--ddtype curriculum --cctype 2 --complete_random", "rat-bptt"),
        *((f"--ddtype curriculum --cctype 2 --truncation {p}", p) for p in ("bptt", "t-bptt", "fixed", "forward")),
        ("--truncation rat-bptt", "rat-bptt"),
        ("--ddtype curriculum --cctype 2 -d 3", "at-bptt"),
        ("--ddtype curriculum --cctype 2 --d 0", "at-bptt"),
        ("--ddtype curriculum --cctype 1 -d 3", "forward"),
        ("--ddtype curriculum --cctype 2 -d 3 --truncation rat-bptt", "rat-bptt"),
        ("--ddtype at_bptt_pp", "at-bptt-pp"),
        ("--ddtype at_bptt_pp --cctype 2 -d 3", "at-bptt-pp"),
        ("--ddtype curriculum --truncation at-bptt-pp", "at-bptt-pp"),
    ],
)  # fmt: skip
def test_policies_follow_the_table_of_the_method(line: str, policy: str) -> None:
    assert parse(line.split())[0].policy == policy


def test_auto_is_recorded_as_what_it_stands_for() -> None:
    config, warnings = parse(["--truncation", "auto"])
    assert (config, warnings) == parse(["--truncation", RECOMMENDED])
    saved = json.loads(config.to_json())
    assert saved["truncation"] == RECOMMENDED
    assert Config.from_json(saved | {"truncation": "auto"}, Path("last.pt")) == config


@pytest.mark.parametrize(
    ("line", "engine", "keeps", "normalises"),
    [
        ("", "replay", False, False),
        ("--ddtype at_bptt_pp", "lowrank", True, True),
        ("--ddtype at_bptt_pp --disable_cr_lrha --no_normalize_syn", "replay", False, False),
        ("--ddtype at_bptt_pp --cr_lrha False --normalize_syn False", "replay", False, False),
        ("--ddtype at_bptt_pp --engine replay", "replay", False, True),
        ("--ddtype at_bptt_pp --engine lowrank", "lowrank", True, True),
        ("--ddtype at_bptt_pp --engine lowrank --disable_cr_lrha", "lowrank", False, True),
        ("--ddtype at_bptt_pp --engine higher --disable_cr_lrha --cr_lrha", "higher", False, True),
        ("--truncation rat-bptt --cr_lrha --normalize_syn", "lowrank", True, True),
        ("--truncation rat-bptt --engine lowrank", "lowrank", False, False),
        ("--truncation at-bptt-positions --normalize_syn True --no_normalize_syn", "replay", False, False),
    ],
)
def test_what_at_bptt_pp_does_by_default_others_do_if_asked(
    line: str, engine: str, keeps: bool, normalises: bool
) -> None:
    config, _ = parse(line.split())
    assert (config.engine_name, config.keeps_factors, config.normalises) == (engine, keeps, normalises)


@pytest.mark.parametrize(
    ("line", "longest"),
    [
        ("--ddtype at_bptt_pp --window 5", 13), ("--ddtype at_bptt_pp --window 15", 20),
        ("--ddtype at_bptt_pp --window 5 --window_radius 2 -d 9", 7), ("--truncation rat-bptt --window 5", 5),
        ("--truncation at-bptt --window 5 -d 3 --window_radius 9", 8),
    ],
)  # fmt: skip
def test_the_longest_window_is_within_the_policys_own_radius(line: str, longest: int) -> None:
    assert parse(line.split())[0].longest_window == longest


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("", "save/digits/IPC_1_bptt_20_20_seed0"),
        ("--fname _x --seed 3 --window 5", "save/digits/IPC_1_t-bptt_5_20_seed3_x"),
        ("--save_dir here", "here"),
    ],
)
def test_the_folder_is_named_after_the_run(line: str, folder: str) -> None:
    assert str(parse(line.split())[0].folder) == folder


@pytest.mark.parametrize(("line", "device"), [("", "auto"), ("--gpu 2", "cuda:2"), ("--device cpu", "cpu")])
def test_gpu_is_another_name_for_a_cuda_device(line: str, device: str) -> None:
    assert parse(line.split())[0].device_name == device


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULTS.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_json_holds_the_whole_configuration(command: Command) -> None:
    config, _ = parse(command.arguments)
    stored = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(config.to_json()).items()}
    assert Config(**stored) == config


# ---- mistakes --------------------------------------------------------------------------------------


def refusal(line: str) -> str:
    """The one line of the ``UserError`` for a command line."""
    with pytest.raises(UserError) as error:
        parse(line.split())
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize(
    ("flag", "refused", "accepted"),
    [
        ("im_size", "0", "1"),
        ("zca_reg", "0 -0.1", "1e-9"),
        ("val_fraction", "-0.01 0.91", "0.01 0.9"),
        ("limit_train", "0 -5", "1"),
        ("workers", "-1", "0"),
        ("width", "0", "1"),
        ("depth", "0", "1"),
        ("num_per_class", "0 -1", "1"),
        ("inner_lr", "0 -1", "1e-9"),
        ("inner_eps_root", "-0.1", "0 1e-8"),
        ("batch_per_class", "0", "1"),
        ("task_sampler_nc", "0", "1"),
        ("window", "0", "1"),
        ("minwindow", "-1", "0"),
        ("totwindow", "0", "20"),
        ("tau", "0 -1", "1e-9"),
        ("probe_every", "0", "1"),
        ("pool_size", "0", "1"),
        ("window_radius", "-1", "0 99"),
        ("selector_kl", "0 -1", "1e-9"),
        ("selector_ref_ema", "-0.1 1.1", "0 1"),
        ("selector_tau_w", "0 -1", "1e-9"),
        ("cr_rank", "0", "1"),
        ("cr_oversample", "-1", "0"),
        ("cr_power_iter", "-1", "0"),
        ("cr_period", "0", "1"),
        ("cr_delta", "-0.1", "0"),
        ("cr_blend", "-0.1 1.1", "0 1"),
        ("epochs", "0", "1"),
        ("start_epoch", "-1", "0 99"),
        ("batch_size", "0", "1"),
        ("lr", "0 -0.5", "1e-9"),
        ("label_lr_scale", "0", "0.5"),
        ("eps", "0", "1e-30"),
        ("wd", "-0.1", "0"),
        ("clip_coef", "-0.1 1.01", "0 1"),
        ("test_freq", "0", "1"),
        ("num_train_eval", "0", "1"),  # ancestors' fault 9
        ("eval_steps", "0 -3", "1"),
        ("print_freq", "0", "1"),
        ("ckpt_epochs", "0", "1"),
        ("ckpt_minutes", "0", "0.1"),
        ("seed", "-1", "0"),
        ("gpu", "-1", "0"),
        ("nproc", "0", "1"),
        ("world_size", "0", "1"),
        ("rank", "-1", "0"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_the_bound_itself_is_not(
    flag: str, refused: str, accepted: str
) -> None:
    for value in refused.split():
        message = refusal(f"--{flag} {value}")
        assert message.startswith(f"--{flag} {value}")
        assert "give a value" in message
    for value in accepted.split():
        parse([f"--{flag}", value])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("name", [name for name in FLAGS if isinstance(getattr(DEFAULTS, name), float)])
def test_numbers_are_finite(name: str, value: str) -> None:
    message = refusal(f"--{name}={value}")
    assert message.startswith(f"--{name} ")
    assert "finite" in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--window 21", "--window 21|--totwindow 20"),
        ("--window 21 --ddtype curriculum", "--window 21|--totwindow 20"),
        ("--truncation rat-bptt --window 15 --minwindow 6", "--minwindow 6|--window 15|--totwindow 20"),
        ("--truncation forward --window 20 --minwindow 1", "--minwindow 1|--window 20|--totwindow 20"),
        ("--truncation rat-bias --engine higher", "--truncation rat-bias|--engine higher|--engine replay"),
        ("--truncation at-bptt", "--truncation at-bptt|-d"),
        ("--truncation at-bptt-windows", "--truncation at-bptt-windows|-d"),
        ("--ddtype curriculum --cctype 2 -d 3 --window 15 --minwindow 6", "--minwindow 6|--window 15|--totwindow 20"),
        ("--early_patience 0", "--early_patience 0|0.15T"),
        ("--early_patience=-0.5T", "--early_patience"),
        ("--middle_patience 3.5", "--middle_patience 3.5|0.15T"),
        ("--middle_patience T", "--middle_patience T|0.15T"),
        ("--freeze_data", "--freeze_data|--train_y"),
        ("--freeze_data --train_y --psp_patches 2", "--freeze_data|--psp_patches"),
        ("--eval_only", "--eval_only|nothing to evaluate|--ckptname|--resume"),
        ("--ddtype at_bptt_pp --window 21", "--window 21|--totwindow 20"),
        ("--num_per_class 3 --batch_per_class 4", "--batch_per_class 4|--num_per_class 3"),
        ("--start_epoch 100", "--start_epoch 100|--epochs 100"),
        ("--epochs 3 --start_epoch 7", "--start_epoch 7|--epochs 3"),
        ("--val_fraction 0", "--val_fraction 0|--select"),
        ("--eval_steps 10 5", "--eval_steps 10 5|increasing"),
        ("--eval_steps 5 5", "--eval_steps 5 5|increasing"),
        ("--gpu 1 --device cpu", "--gpu 1|--device cpu"),
        ("--gpu 1 --device cuda:0", "--gpu 1|--device cuda:0"),
        ("--rank 1", "--rank 1|--world_size 1"),
        ("--world_size 2 --rank 2 --dist-url tcp://h:1", "--rank 2|--world_size 2"),
        ("--world_size 2", "--world_size|--dist-url"),
        ("--syn_strategy warp", "--syn_strategy warp|unknown augmentation 'warp'|flip, rotate, scale"),
        ("--syn_strategy flip-rotate", "--syn_strategy|'flip-rotate'"),
        ("--syn_strategy flip_none", "--syn_strategy|'none'"),
        ("--syn_strategy flip__rotate", "--syn_strategy|''"),
        ("--syn_strategy=", "--syn_strategy|''"),
        ("--real_strategy flip_warp", "--real_strategy flip_warp|'warp'"),
        ("--real_strategy flip_rotate_flip", "--real_strategy flip_rotate_flip|twice"),
    ],
)
def test_a_contradiction_names_its_flags(line: str, words: str) -> None:
    message = refusal(line)
    assert all(word in message for word in words.split("|")), message


@pytest.mark.parametrize(
    "line",
    [
        "--gpu 1 --device cuda:1",
        "--gpu 1 --device cuda",
        "--truncation bptt --totwindow 5",  # bptt reads no --window, so its default is no contradiction
        "--truncation rat-bptt --window 14 --minwindow 6",
        "--num_per_class 4 --batch_per_class 4",
        "--start_epoch 99",
        "--ddtype at_bptt_pp --window 20 --minwindow 9 --window_radius 30",
        "--freeze_data --train_y",
        "--eval_only --ckptname file",
        "--eval_only --resume",
        "--select test --val_fraction 0",
        "--syn_strategy none --real_strategy flip_rotate_scale_crop_color_cutout_mixup",
    ],
)
def test_what_is_no_contradiction_is_allowed(line: str) -> None:
    parse(line.split())


@pytest.mark.parametrize(
    ("classes", "side", "line", "words"),
    [
        (10, 8, "--task_sampler_nc 11", "--task_sampler_nc 11|10 classes"),  # ancestors' fault 11
        (10, 7, "", "--arch convnet|8 pixels|not 7"),
        (10, 15, "--arch convnet4", "--arch convnet4|16 pixels|--im_size"),
        (10, 15, "--depth 4", "depth 4|16 pixels"),
        (10, 16, "--arch vgg11", "--arch vgg11|17 pixels|--im_size"),
        (10, 32, "--arch vgg11 --depth 6", "--depth 6"),
        (10, 32, "--norm group --width 6", "--norm group|--width"),
        (10, 30, "--psp_patches 4", "--psp_patches 4|30 pixels|--im_size"),
        (10, 32, "--arch vit --norm instance", "--norm instance|--arch vit"),
    ],
)
def test_flags_that_do_not_fit_the_data_are_refused(classes: int, side: int, line: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        check_against_data(parse(line.split())[0], classes, side)
    assert all(word in str(error.value) for word in words.split("|")), error.value


@pytest.mark.parametrize(
    ("classes", "side", "line"),
    [
        (10, 8, "--task_sampler_nc 10"),
        (None, 8, "--task_sampler_nc 1000"),
        (10, 16, "--arch convnet4"),
        (10, 1, "--depth 1 --im_size 2"),
        (None, 8, "--arch vit --norm batch --act relu --pool none"),
    ],
)
def test_flags_that_fit_the_data_pass(classes: int | None, side: int, line: str) -> None:
    config, _ = parse(line.split())
    check_against_data(config, classes, config.im_size or side)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("--no_such_flag", "--no_such_flag"),
        ("positional", "positional"),
        ("--lr fast", "--lr"),
        ("--lr", "--lr"),
        ("--num_per_class 1.5", "--num_per_class"),
        ("--arch resnet0", "--arch"),
        ("--cctype 3", "--cctype"),
        ("--eval_steps", "--eval_steps"),
        ("--eval_steps 5 x", "--eval_steps"),
        ("--baselines none", "--baselines"),
        ("--zca yes", "yes"),
        # No abbreviations: a new flag must never change what an old command means.
        ("--epo 3", "--epo"),
        ("--win 3", "--win"),
        ("--zc", "--zc"),
        ("--batch_s=3", "--batch_s"),
    ],
)
def test_what_the_parser_refuses_is_one_line_and_code_2(
    line: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(line.split())
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert word in captured.err


# ---- warnings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("root", "--root elsewhere"),
        ("zca_reg", "--zca_reg 0.2"),
        ("zca_reg", "--zca_reg 0.2 --zca_pixels"),
        ("val_fraction", "--val_fraction 0.2 --select test"),
        ("workers", "--workers 2 --dataset cifar10"),
        ("cache_dir", "--cache_dir x --data_cache device"),
        ("comp_aug", "--comp_aug --syn_strategy flip"),
        ("comp_aug", "--comp_aug --syn_strategy none"),
        ("comp_aug_real", "--comp_aug_real --real_strategy rotate"),
        ("ddtype", "--ddtype curriculum --truncation fixed"),
        ("cctype", "--cctype 2"),
        ("cctype", "--cctype 2 --ddtype curriculum --truncation fixed"),
        ("window", "--window 5 --truncation bptt"),
        ("minwindow", "--minwindow 3 --truncation fixed"),
        ("minwindow", "--minwindow 3"),
        ("complete_random", "--complete_random --truncation forward"),
        ("d", "-d 3"),
        ("d", "-d 3 --truncation at-bptt-positions"),
        ("tau", "--tau 2 --ddtype curriculum --cctype 2"),
        ("window_rule", "--window_rule public --truncation at-bptt-positions"),
        ("probe_every", "--probe_every 2"),
        ("minwindow", "--minwindow 3 --truncation at-bptt-pp"),
        ("complete_random", "--complete_random --ddtype at_bptt_pp"),
        ("cctype", "--cctype 2 --ddtype at_bptt_pp"),
        ("d", "-d 3 --ddtype at_bptt_pp"),
        ("tau", "--tau 2 --ddtype at_bptt_pp"),
        ("window_radius", "--window_radius 3 --truncation at-bptt -d 2"),
        ("selector_kl", "--selector_kl 3 --truncation rat-bptt"),
        ("bias", "--bias 0.3 --truncation rat-bptt"),
        ("bias_roulette", "--bias_roulette 0.3 --truncation rat-is"),
        ("pool_choice", "--pool_choice importance --truncation rat-is"),
        ("is_decay", "--is_decay 0.8 --truncation rat-pool"),
        ("is_uniform", "--is_uniform 0.3 --truncation rat-bias"),
        ("cr_rank", "--cr_rank 3 --truncation rat-bptt"),
        ("cr_rank", "--cr_rank 3 --ddtype at_bptt_pp --disable_cr_lrha"),
        ("cr_rank", "--cr_rank 3 --ddtype at_bptt_pp --engine replay"),
        ("cr_mode", "--cr_mode gradient --engine lowrank"),
        ("cr_delta", "--cr_delta 0.3 --truncation rat-bptt --cr_lrha"),
        ("cr_lrha", "--cr_lrha --engine replay"),
        ("cr_lrha", "--disable_cr_lrha --engine higher"),
        ("lowrank_rank", "--lowrank_rank 3"),
        ("lowrank_rank", "--lowrank_rank 3 --engine lowrank --cr_lrha"),
        ("lowrank_rank", "--lowrank_rank 3 --engine lowrank --ddtype at_bptt_pp"),
        ("normalize_syn", "--normalize_syn --freeze_data --train_y"),
        ("label_lr_scale", "--label_lr_scale 2"),
        ("eps", "--eps 1e-4 --outer_optim SGD"),
        ("fname", "--fname x --save_dir y"),
        ("name", "--name x"),
        ("trial", "--trial"),
        ("nproc", "--nproc 2"),
        ("dist_url", "--dist-url tcp://h:1"),
        ("dist_backend", "--dist-backend gloo"),
    ],
)
def test_a_flag_that_cannot_matter_gets_one_warning(flag: str, line: str) -> None:
    about = [
        warning
        for warning in parse(line.split())[1]
        if warning.startswith((f"--{flag} is not read", f"-{flag} is not read"))
    ]
    assert len(about) == 1
    assert FLAGS[flag].read_by in about[0]


@pytest.mark.parametrize(
    "line",
    [
        "--root elsewhere --dataset cifar10",
        "--zca --zca_reg 0.2",
        "--val_fraction 0.2",
        "--workers 2 --dataset imagefolder",
        "--workers 2 --dataset imagewoof --data_cache disk --cache_dir x",
        "--zca --data_cache device --cache_dir x",
        "--zca_pixels --data_cache device --cache_dir x",
        "--comp_aug --comp_aug_real",
        "--ddtype curriculum --cctype 1 --minwindow 3 --window 5",
        "--truncation rat-bptt --complete_random --window 5 --minwindow 3",
        "--ddtype curriculum --cctype 2 -d 3 --tau 2 --window_rule public --window_weight softmax --early_gain 2",
        "--truncation at-bptt-positions --tau 2 --middle_patience 0.05E --early_patience 4 --minwindow 0",
        "--ddtype at_bptt_pp --window_radius 3 --selector_kl 2 --selector_ref_ema 0.1 --selector_tau_w 2 --cr_rank 5 "
        "--cr_oversample 1 --cr_power_iter 1 --cr_delta 0.1 --cr_period 3 --cr_blend 0.5 --cr_mode gradient --window 9",
        "--truncation rat-bias --bias 0.3 --bias_roulette 0.5 --is_decay 0.8 --minwindow 2 --window 9 --engine lowrank",
        "--truncation rat-pool --pool_choice importance --is_bins 5 --is_decay 0.8 --is_uniform 0.3",
        "--ddtype at_bptt_pp --engine lowrank --cr_rank 3 --no_normalize_syn",
        "--ddtype at_bptt_pp --engine lowrank --disable_cr_lrha --lowrank_rank 3",
        "--truncation rat-bptt --cr_lrha --cr_rank 3 --cr_period 5 --normalize_syn",
        "--train_y --label_lr_scale 2 --freeze_data",
        "--eps 1e-4",
        "--fname x",
        "--wandb --name x",
        "--mp_distributed --nproc 2 --dist-backend gloo",
    ],
)
def test_a_flag_that_matters_gets_no_warning(line: str) -> None:
    assert parse(line.split())[1] == []


def test_selecting_on_the_test_set_is_warned_of() -> None:
    (warning,) = parse(["--select", "test"])[1]
    assert "--select test" in warning
    assert "optimistic" in warning


# ---- resuming --------------------------------------------------------------------------------------

FREE = """
root workers epochs baselines save_dir fname resume print_freq ckpt_epochs ckpt_minutes wandb name dry_run device gpu
rank dist_url dist_backend data_cache cache_dir chunk channels_last accelerate
eval_only max_bad_steps deterministic patience track trial mp_distributed nproc world_size
"""


def another(value: Any) -> Any:
    """A value that differs from ``value``."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case _:
            return (7,) if isinstance(value, tuple) else 7


@pytest.mark.parametrize("name", FLAGS)
def test_a_resumed_run_may_change_only_what_cannot_change_its_result(name: str) -> None:
    value = another(getattr(DEFAULTS, name))
    found = dataclasses.replace(DEFAULTS, **{name: value}).differences(DEFAULTS)
    assert len(found) == (name not in FREE.split())
    assert all(text.startswith((f"--{name} was ", f"-{name} was ")) for text in found)


def test_a_saved_configuration_without_a_younger_flag_has_its_default() -> None:
    saved = json.loads(DEFAULTS.to_json())
    del saved["lr"], saved["name"]
    old = Config.from_json(saved, Path("last.pt"))
    assert DEFAULTS.differences(old) == []
    assert dataclasses.replace(DEFAULTS, lr=0.1).differences(old) == ["--lr was 0.01 and is 0.1"]


# ---- anything at all -------------------------------------------------------------------------------

WORDS = ["", "0", "1", "2", "7", "25", "-1", "0.5", "nan", "1e400", "9" * 30, "x", "none", "flip_rotate", "é", "a b"]
WORDS += sorted({str(choice) for flag in FLAGS.values() for choice in flag.choices or ()})
OPTIONS = sorted(set((ANCESTORS + OURS + AUTOMATIC + LEARNT).split()) - {"-h", "--help"})
tokens = st.lists(st.one_of(st.sampled_from(OPTIONS), st.sampled_from(WORDS)), max_size=8)
pairs = st.lists(st.tuples(st.sampled_from(OPTIONS), st.sampled_from(WORDS)), max_size=5).map(lambda p: sum(p, ()))


def outcome(arguments: list[str]) -> tuple[Config, list[str]] | str:
    """The configuration and warnings, or what a refused line makes the program say."""
    said = StringIO()
    try:
        with redirect_stderr(said):
            return parse(arguments)
    except UserError as error:
        return f"main.py: error: {error}\n"
    except SystemExit as stop:
        return said.getvalue() if stop.code == 2 else f"exit code {stop.code}"


@settings(max_examples=300, deadline=None)
@given(st.one_of(tokens, pairs))
def test_any_command_line_is_read_or_refused_in_one_line(arguments: list[str]) -> None:
    result = outcome(arguments)
    if isinstance(result, str):
        assert result.startswith("main.py: error: ")
        assert result.count("\n") == 1
        return
    config, warnings = result
    assert 1 <= config.window <= config.totwindow or config.policy == "bptt"
    assert config.batch_per_class <= config.num_per_class
    assert all(warning.startswith("-") for warning in warnings)
    assert not set(config.validate()) - set(warnings)
