"""Score a distilled set with the package ddranking 0.2.0 itself; see scripts/ddranking_score.sh, which runs this.

Prints a JSON object: the package's own figures (accuracies and their differences in percentage points), and both
scores once more by the paper's formula (arXiv 2505.13300, section 3), which takes differences as fractions; the
package puts points into its exponential. ddranking seeds itself from the clock, so figures vary from run to run.
"""

import contextlib
import json
import math
import pickle
import sys
from pathlib import Path

import ddranking.metrics.aug_robust as ars_module
import ddranking.metrics.hard_label as hard_module
import numpy as np
import torch
from ddranking.metrics import AugmentationRobustScore, LabelRobustScoreHard, LabelRobustScoreSoft
from PIL import Image
from torchvision import datasets, transforms

from common import Parser, run, to_json

DSA = {
    "flip": 0.5,
    "rotate": 15.0,
    "scale": 1.2,
    "crop": 0.125,
    "cutout": 0.5,
    "brightness": 1.0,
    "saturation": 2.0,
    "contrast": 0.5,
}


def write_batches(tree: Path, root: Path) -> None:
    """Write ``tree/{train,test}/CLASS/*`` (32x32 pictures of CIFAR-10's classes) as CIFAR-10's python files."""
    folder = root / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(entry.name for entry in (tree / "train").iterdir())
    for part, files in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        images = [(path, label) for label, name in enumerate(names) for path in sorted((tree / part / name).iterdir())]
        for i, file in enumerate(files):
            share = images[i :: len(files)]
            pixels = [np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).ravel() for path, _ in share]
            content = {"data": np.stack(pixels), "labels": [label for _, label in share]}
            (folder / file).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


def trust_files() -> None:
    """Let torchvision open files that are not the published ones: its checksums are switched off."""
    datasets.CIFAR10._check_integrity = lambda self: True
    datasets.cifar.check_integrity = lambda *arguments: True


def paper_score(first: float, second: float, weight: float = 0.5) -> float:
    """(e^a - e^-1) / (e - e^-1) with a = weight * first + (1 - weight) * second, both fractions."""
    a = weight * first + (1 - weight) * second
    return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))


def main() -> None:
    """Parse, score, print."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("set", type=Path, help="folder written by main.py export --to ddranking")
    add("--root", type=Path, default=Path("dataset"), help="folder of the real data as torchvision reads it")
    add(
        "--tree", type=Path, help="make CIFAR-10's files in --root from train/CLASS/*, test/CLASS/* (checksums are off)"
    )
    add("--score", nargs="+", choices=("lrs", "ars"), default=["lrs"], help="label-, augmentation-robust")
    add("--random_real", action="store_true", help="score as many random real images in place of the set")
    add("--full_accuracy", type=float, help="accuracy in percent of the whole real set (default: trained here, slow)")
    add("--model_name", default="ConvNet-3")
    add("--num_eval", type=int, default=5, help="repetitions")
    add("--num_epochs", type=int, default=300)
    add("--augmentation", choices=("dsa", "none"), default="dsa")
    add("--teacher_dir", help="trained teachers, which sets with learnt labels need (see ddranking's README)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    about = json.loads((args.set / "set.json").read_text())
    dataset, ipc, hard = about["dataset"], about["ipc"], about["labels"] == "hard"
    if not hard and args.teacher_dir is None:
        sys.exit("ddranking_score: a set with learnt labels is compared with labels of teachers; give --teacher_dir")
    if args.tree is not None:
        write_batches(args.tree, args.root)
        trust_files()
    elif not args.root.is_dir():
        sys.exit(
            f"ddranking_score: --root {args.root}: no such folder; ddranking scores against the real {dataset} in "
            "torchvision's form, put it there, or give --tree for a CIFAR-10 tree of pictures"
        )
    torch.backends.cudnn.enabled = args.device != "cpu"
    common = {
        "dataset": dataset, "real_data_path": str(args.root), "ipc": ipc, "model_name": args.model_name,
        "data_aug_func": args.augmentation, "aug_params": DSA, "num_eval": args.num_eval,
        "num_epochs": args.num_epochs, "im_size": tuple(about["im_size"]), "num_workers": 0, "device": args.device,
    }  # fmt: skip
    teachers = {} if hard else {"teacher_dir": args.teacher_dir, "teacher_model_names": [args.model_name]}
    soft = {"soft_label_mode": "S", "soft_label_criterion": "sce",
            "loss_fn_kwargs": {"temperature": 1.0, "scale_loss": False}}  # fmt: skip
    images, labels = (torch.load(args.set / name, weights_only=True) for name in ("images.pt", "labels.pt"))
    which = f"{len(images)} random real images" if args.random_real else str(args.set)
    result: dict[str, object] = {
        "scored": which, "re_encoded_data": args.tree is not None, "full_accuracy": args.full_accuracy,
        **{key: common[key] for key in ("dataset", "ipc", "model_name", "data_aug_func", "num_eval", "num_epochs")},
    }  # fmt: skip

    with contextlib.redirect_stdout(sys.stderr):  # the package prints every epoch
        if "lrs" in args.score:
            if args.full_accuracy is not None:
                hard_module.REAL_DATA_ACC_CACHE[f"{dataset}-{args.model_name}"] = args.full_accuracy
            hard_module.save_results = lambda *arguments: None  # 0.2.0 fails there, on a list it has filled twice
            folder = {"save_path": str(args.set / "scores" / "lrs.csv"), "random_data_format": "tensor",
                      "random_data_path": str(args.set / "scores" / "random_tensors")}  # fmt: skip
            full = {"eval_full_data": args.full_accuracy is None}
            if hard:
                lrs = LabelRobustScoreHard(**common, **folder, **full, step_size=max(1, args.num_epochs // 2))
            else:
                lrs = LabelRobustScoreSoft(**common, **folder, **full, **teachers, **soft)
            if args.random_real:
                _, images, labels = lrs._get_random_data_helper(0)
            found = lrs.compute_metrics(image_tensor=images, **{"hard_labels" if hard else "soft_labels": labels})
            hlr, ior = found["hard_label_recovery_mean"], found["improvement_over_random_mean"]
            if args.full_accuracy is not None:
                result["accuracy"] = {"set": args.full_accuracy - hlr, "random": args.full_accuracy - hlr - ior}
            result["lrs"] = {**found, "score_by_the_papers_formula": paper_score(ior / 100, -hlr / 100)}
        if "ars" in args.score:
            mean, std = ars_module.get_dataset(dataset, str(args.root), None, False, None, args.device)[2:4]
            plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
            ars = AugmentationRobustScore(
                **common, **teachers, **({} if hard else soft), label_type="hard" if hard else "soft",
                lr_scheduler="cosine", custom_train_trans=plain, random_data_format="image",
                random_data_path=str(args.set / "scores" / "random"), save_path=str(args.set / "scores" / "ars.csv"),
            )  # fmt: skip
            if hard:  # 0.2.0 reads both here, and sets them for soft labels alone
                ars.teacher_models, ars.test_loader_real = None, ars.test_loader_syn
            if args.random_real:
                drawn = datasets.ImageFolder(ars._get_random_data_helper(0)[0], transform=plain)
                images = torch.stack([image for image, _ in drawn])
            found = ars.compute_metrics(image_tensor=images, soft_labels=None if hard else labels)
            differences = (found[f"{name}_aug_scores_mean"] / 100 for name in ("with", "without"))
            result["ars"] = {**found, "score_by_the_papers_formula": paper_score(*differences)}
    print(to_json(result), end="")


if __name__ == "__main__":
    run(main)
