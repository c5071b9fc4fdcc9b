"""Names that ``main.py export`` offers: here, as ``--help`` needs them and should not wait for PyTorch."""

FORMS = {
    "safetensors": ".safetensors",
    "pt": ".pt",
    "npz": ".npz",
    "h5": ".h5",
    "images": "",
    "ddranking": "",
    "hf": "",
}
"""What each form's path ends in; a folder's in nothing. Their writers are in ``exports``."""

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DDRANKING = {
    "CIFAR10": _CIFAR,
    "CIFAR100": _CIFAR,
    "TinyImageNet": _IMAGENET,
    "ImageNet1K": _IMAGENET,
    **{f"Image{name}": _IMAGENET for name in ("Nette", "Woof", "Fruit", "Meow", "Squawk", "Yellow")},
}
"""ddranking 0.2.0, ddranking/utils/data.py: its name for a data set, and what it subtracts from pixels in [0, 1] and
divides them by. Its CIFAR deviations are not the data's (0.247, 0.243, 0.262), but they are what its
test images get."""
