"""The example commands of the READMEs of RaT-BPTT, AT-BPTT and AT-BPTT++, as data, and what each of them means."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command line.

    Attributes:
        line: the flags as the README gives them.
        resolved: every field of ``Config`` that differs from its default.
        policy: the truncation policy that runs.
        preview: facts of the dry run, worked out by hand: window and trajectory, parameters, image shape,
            outer steps per epoch and in all.
    """

    line: str
    resolved: dict[str, Any]
    policy: str
    preview: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        return self.line.split()


_COMMON = {
    "ddtype": "curriculum",
    "num_train_eval": 8,
    "epochs": 60000,
    "print_freq": 10,
    "inner_optim": "Adam",
    "inner_lr": 0.001,
}

RAT_BPTT = {
    "cifar10-ipc10": Command(
        "--dataset cifar10 --num_per_class 10 --batch_per_class 10 --num_train_eval 8 --world_size 1 --rank 0 "
        "--batch_size 5000 --ddtype curriculum --cctype 2 --epoch 60000 --test_freq 25 --print_freq 10 "
        "--arch convnet --window 60 --minwindow 0 --totwindow 200 --inner_optim Adam --inner_lr 0.001 --lr 0.001 "
        "--zca --syn_strategy flip_rotate --real_strategy flip_rotate --fname 60_200 --seed 0",
        _COMMON
        | {"dataset": "cifar10", "num_per_class": 10, "batch_per_class": 10, "batch_size": 5000, "cctype": 2}
        | {"test_freq": 25, "window": 60, "totwindow": 200, "lr": 0.001, "zca": True, "fname": "60_200"},
        "rat-bptt",
        ("60 of 200 inner steps", "319,626 parameters", "3 x 32 x 32", "about 9 (45,000 real", "540,000 in all"),
    ),
    "cifar100-ipc10": Command(
        "--dataset cifar100 --num_per_class 10 --batch_per_class 1 --train_y --task_sampler_nc 100 "
        "--num_train_eval 8 --world_size 1 --rank 0 --batch_size 5000 --ddtype curriculum --cctype 2 --epoch 60000 "
        "--test_freq 25 --print_freq 10 --arch convnet --window 100 --minwindow 0 --totwindow 300 "
        "--inner_optim Adam --inner_lr 0.001 --lr 0.001 --zca --syn_strategy flip_rotate "
        "--real_strategy flip_rotate --fname train_y",
        _COMMON
        | {"dataset": "cifar100", "num_per_class": 10, "train_y": True, "task_sampler_nc": 100, "batch_size": 5000}
        | {"cctype": 2, "test_freq": 25, "window": 100, "totwindow": 300, "lr": 0.001, "zca": True}
        | {"fname": "train_y"},
        "rat-bptt",
        ("100 of 300 inner steps", "504,036 parameters", "3 x 32 x 32", "about 9 (45,000 real", "540,000 in all"),
    ),
    "tiny-imagenet-ipc10": Command(
        "--dataset tiny-imagenet-200 --num_per_class 10 --batch_per_class 1 --task_sampler_nc 50 --train_y "
        "--num_train_eval 8 --world_size 1 --rank 0 --batch_size 1000 --ddtype curriculum --cctype 2 --epoch 60000 "
        "--test_freq 10 --print_freq 10 --arch convnet4 --window 100 --minwindow 0 --totwindow 300 "
        "--inner_optim Adam --inner_lr 0.001 --lr 0.0003 --syn_strategy flip_rotate --real_strategy flip_rotate "
        "--fname test",
        _COMMON
        | {"dataset": "tiny-imagenet-200", "num_per_class": 10, "train_y": True, "task_sampler_nc": 50}
        | {"batch_size": 1000, "cctype": 2, "test_freq": 10, "arch": "convnet4", "window": 100, "totwindow": 300}
        | {"lr": 0.0003, "fname": "test"},
        "rat-bptt",
        ("100 of 300 inner steps", "856,648 parameters", "3 x 64 x 64", "about 90 (90,000 real", "5,400,000 in all"),
    ),
    "cifar100-ipc1": Command(
        "--dataset cifar100 --num_per_class 1 --batch_per_class 1 --task_sampler_nc 100 --num_train_eval 8 --train_y "
        "--world_size 1 --rank 0 --batch_size 5000 --ddtype curriculum --cctype 0 --epoch 60000 --test_freq 50 "
        "--print_freq 10 --arch convnet --window 90 --minwindow 0 --totwindow 130 --inner_optim Adam "
        "--inner_lr 0.001 --lr 0.0003 --zca --syn_strategy flip_rotate --real_strategy flip_rotate",
        _COMMON
        | {"dataset": "cifar100", "train_y": True, "task_sampler_nc": 100, "batch_size": 5000, "test_freq": 50}
        | {"window": 90, "totwindow": 130, "lr": 0.0003, "zca": True},
        "fixed",
        ("90 of 130 inner steps", "504,036 parameters", "3 x 32 x 32", "about 9 (45,000 real", "540,000 in all"),
    ),
    "tiny-imagenet-fixed": Command(
        "--dataset tiny-imagenet-200 --num_per_class 10 --batch_per_class 1 --task_sampler_nc 50 --train_y "
        "--num_train_eval 8 --world_size 1 --rank 0 --batch_size 2000 --ddtype curriculum --cctype 0 --epoch 60000 "
        "--test_freq 10 --print_freq 10 --arch convnet4 --window 90 --minwindow 0 --totwindow 270 "
        "--inner_optim Adam --inner_lr 0.001 --lr 0.0003 --syn_strategy flip_rotate --real_strategy flip_rotate",
        _COMMON
        | {"dataset": "tiny-imagenet-200", "num_per_class": 10, "train_y": True, "task_sampler_nc": 50}
        | {"batch_size": 2000, "test_freq": 10, "arch": "convnet4", "window": 90, "totwindow": 270, "lr": 0.0003},
        "fixed",
        ("90 of 270 inner steps", "856,648 parameters", "3 x 64 x 64", "about 45 (90,000 real", "2,700,000 in all"),
    ),
    "imagenet-ipc1": Command(
        "--dataset imagenet --train_y --num_per_class 1 --batch_per_class 1 --task_sampler_nc 50 --num_train_eval 8 "
        "--world_size 1 --rank 0 --batch_size 1500 --ddtype curriculum --cctype 0 --epoch 60000 --test_freq 1 "
        "--print_freq 10 --arch convnet4 --window 80 --minwindow 0 --totwindow 280 --inner_optim Adam "
        "--inner_lr 0.001 --lr 0.0003 --syn_strategy flip_rotate --real_strategy flip_rotate --workers 4",
        _COMMON
        | {"dataset": "imagenet", "train_y": True, "task_sampler_nc": 50, "batch_size": 1500, "test_freq": 1}
        | {"arch": "convnet4", "window": 80, "totwindow": 280, "lr": 0.0003, "workers": 4},
        "fixed",
        ("80 of 280 inner steps", "2,495,848 parameters", "3 x 64 x 64", "about 768 (1,153,050", "46,080,000 in all"),
    ),
}

AT_BPTT = {
    "cifar10-ipc10": Command(
        "--dataset cifar10 --num_per_class 10 --batch_per_class 10 --num_train_eval 8 --world_size 1 --rank 0 "
        "--batch_size 5000 --ddtype curriculum --cctype 2 --epoch 60000 --test_freq 25 --print_freq 10 "
        "--arch convnet --window 40 --minwindow 0 --totwindow 200 --inner_optim Adam --inner_lr 0.001 --lr 0.001 "
        "--zca --syn_strategy flip_rotate --real_strategy flip_rotate --fname 60_200 --seed 0 -d 10 --mp_distributed",
        _COMMON
        | {"dataset": "cifar10", "num_per_class": 10, "batch_per_class": 10, "batch_size": 5000, "cctype": 2}
        | {"test_freq": 25, "window": 40, "totwindow": 200, "lr": 0.001, "zca": True, "fname": "60_200"}
        | {"d": 10, "mp_distributed": True},
        "at-bptt",
        ("at most 50 of 200 inner steps", "319,626 parameters", "3 x 32 x 32", "about 9 (45,000 real"),
    ),
    "cifar100-ipc10": Command(
        "--dataset cifar100 --num_per_class 10 --batch_per_class 1 --train_y --task_sampler_nc 100 "
        "--num_train_eval 8 --world_size 1 --rank 0 --batch_size 1000 --ddtype curriculum --cctype 2 --epoch 60000 "
        "--test_freq 25 --print_freq 10 --arch convnet --window 100 --minwindow 0 --totwindow 300 "
        "--inner_optim Adam --inner_lr 0.001 --lr 0.001 --zca --syn_strategy flip_rotate "
        "--real_strategy flip_rotate --fname train_y -d 20 --mp_distributed",
        _COMMON
        | {"dataset": "cifar100", "num_per_class": 10, "train_y": True, "task_sampler_nc": 100, "batch_size": 1000}
        | {"cctype": 2, "test_freq": 25, "window": 100, "totwindow": 300, "lr": 0.001, "zca": True}
        | {"fname": "train_y", "d": 20, "mp_distributed": True},
        "at-bptt",
        ("at most 120 of 300 inner steps", "504,036 parameters", "3 x 32 x 32", "about 45 (45,000 real"),
    ),
    "tiny-imagenet-ipc10": Command(
        "--dataset tiny-imagenet-200 --num_per_class 10 --batch_per_class 1 --task_sampler_nc 50 --train_y "
        "--num_train_eval 8 --world_size 1 --rank 0 --batch_size 1000 --ddtype curriculum --cctype 2 --epoch 60000 "
        "--test_freq 10 --print_freq 10 --arch convnet4 --window 100 --minwindow 0 --totwindow 300 "
        "--inner_optim Adam --inner_lr 0.001 --lr 0.0003 --syn_strategy flip_rotate --real_strategy flip_rotate "
        "--fname test -d 30 --mp_distributed",
        _COMMON
        | {"dataset": "tiny-imagenet-200", "num_per_class": 10, "train_y": True, "task_sampler_nc": 50}
        | {"batch_size": 1000, "cctype": 2, "test_freq": 10, "arch": "convnet4", "window": 100, "totwindow": 300}
        | {"lr": 0.0003, "fname": "test", "d": 30, "mp_distributed": True},
        "at-bptt",
        ("at most 130 of 300 inner steps", "856,648 parameters", "3 x 64 x 64", "about 90 (90,000 real"),
    ),
}
_PP = {key: value for key, value in _COMMON.items() if key != "ddtype"} | {"ddtype": "at_bptt_pp", "seed": 41}
_PP |= {"train_y": True}

AT_BPTT_PP = {
    "cifar10-ipc10": Command(
        "--dataset cifar10 --num_per_class 10 --batch_per_class 10 --task_sampler_nc 10 --train_y --num_train_eval 8 "
        "--world_size 1 --rank 0 --batch_size 5000 --ddtype at_bptt_pp --arch convnet --window 16 --totwindow 32 "
        "--window_radius 8 --selector_kl 1.0 --selector_ref_ema 0.05 --selector_tau_w 1.0 --cr_rank 32 --cr_delta 0.2 "
        "--cr_period 20 --cr_oversample 4 --cr_power_iter 2 --inner_optim Adam --inner_lr 0.001 --lr 0.001 "
        "--epochs 60000 --test_freq 25 --print_freq 10 --zca --syn_strategy flip_rotate --real_strategy flip_rotate "
        "--comp_aug --comp_aug_real --fname at_bptt_pp_cifar10_ipc10_table1 --seed 41",
        _PP
        | {"dataset": "cifar10", "num_per_class": 10, "batch_per_class": 10, "task_sampler_nc": 10}
        | {"batch_size": 5000, "window": 16, "totwindow": 32, "lr": 0.001, "test_freq": 25, "zca": True}
        | {"comp_aug": True, "comp_aug_real": True, "fname": "at_bptt_pp_cifar10_ipc10_table1"},
        "at-bptt-pp",
        ("at most 24 of 32 inner steps", "319,626 parameters", "3 x 32 x 32", "about 9 (45,000 real", "kept factors"),
    ),
    "cifar100-ipc10": Command(
        "--dataset cifar100 --num_per_class 10 --batch_per_class 1 --task_sampler_nc 100 --train_y --num_train_eval 8 "
        "--world_size 1 --rank 0 --batch_size 5000 --ddtype at_bptt_pp --arch convnet --window 100 --totwindow 300 "
        "--window_radius 30 --selector_kl 1.0 --selector_ref_ema 0.05 --selector_tau_w 1.0 --cr_rank 32 "
        "--cr_delta 0.05 --cr_period 20 --inner_optim Adam --inner_lr 0.001 --lr 0.001 --epochs 60000 --test_freq 25 "
        "--print_freq 10 --zca --syn_strategy flip_rotate --real_strategy flip_rotate --fname at_bptt_pp_cifar100 "
        "--seed 41",
        _PP
        | {"dataset": "cifar100", "num_per_class": 10, "task_sampler_nc": 100, "batch_size": 5000, "window": 100}
        | {"totwindow": 300, "window_radius": 30, "cr_delta": 0.05, "lr": 0.001, "test_freq": 25, "zca": True}
        | {"fname": "at_bptt_pp_cifar100"},
        "at-bptt-pp",
        ("at most 130 of 300 inner steps", "504,036 parameters", "3 x 32 x 32", "about 9 (45,000 real"),
    ),
    "tiny-imagenet-ipc10": Command(
        "--dataset tiny-imagenet-200 --num_per_class 10 --batch_per_class 1 --task_sampler_nc 50 --train_y "
        "--num_train_eval 8 --world_size 1 --rank 0 --batch_size 1000 --ddtype at_bptt_pp --arch convnet4 "
        "--window 100 --totwindow 300 --window_radius 40 --selector_kl 1.0 --selector_ref_ema 0.05 "
        "--selector_tau_w 1.0 --cr_rank 32 --cr_delta 0.05 --cr_period 20 --inner_optim Adam --inner_lr 0.001 "
        "--lr 0.0003 --epochs 60000 --test_freq 10 --print_freq 10 --syn_strategy flip_rotate "
        "--real_strategy flip_rotate --fname at_bptt_pp_tiny --seed 41",
        _PP
        | {"dataset": "tiny-imagenet-200", "num_per_class": 10, "task_sampler_nc": 50, "batch_size": 1000}
        | {"arch": "convnet4", "window": 100, "totwindow": 300, "window_radius": 40, "cr_delta": 0.05}
        | {"lr": 0.0003, "test_freq": 10, "fname": "at_bptt_pp_tiny"},
        "at-bptt-pp",
        ("at most 140 of 300 inner steps", "856,648 parameters", "3 x 64 x 64", "about 90 (90,000 real"),
    ),
    "imagenet-ipc1": Command(
        "--dataset imagenet --num_per_class 1 --batch_per_class 1 --task_sampler_nc 50 --train_y --num_train_eval 8 "
        "--world_size 1 --rank 0 --batch_size 1500 --ddtype at_bptt_pp --arch convnet4 --window 80 --totwindow 280 "
        "--window_radius 40 --selector_kl 1.0 --selector_ref_ema 0.05 --selector_tau_w 1.0 --cr_rank 32 "
        "--cr_delta 0.05 --cr_period 20 --inner_optim Adam --inner_lr 0.001 --lr 0.0003 --epochs 60000 --test_freq 10 "
        "--print_freq 10 --syn_strategy flip_rotate --real_strategy flip_rotate --fname at_bptt_pp_imagenet "
        "--workers 4 --seed 41",
        _PP
        | {"dataset": "imagenet", "task_sampler_nc": 50, "batch_size": 1500, "arch": "convnet4", "window": 80}
        | {"totwindow": 280, "window_radius": 40, "cr_delta": 0.05, "lr": 0.0003, "test_freq": 10, "workers": 4}
        | {"fname": "at_bptt_pp_imagenet"},
        "at-bptt-pp",
        ("at most 120 of 280 inner steps", "2,495,848 parameters", "3 x 64 x 64", "about 768 (1,153,050"),
    ),
}
COMMANDS = {
    f"{paper} {name}": command
    for paper, commands in (("rat-bptt", RAT_BPTT), ("at-bptt", AT_BPTT), ("at-bptt-pp", AT_BPTT_PP))
    for name, command in commands.items()
}
