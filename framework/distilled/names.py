"""Names of ``main.py export`` and ``evaluate``: here, as ``--help`` needs them and should not wait for PyTorch."""

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

HUB_TOKEN, HUB_ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"
"""Variables with the token that may write to the Hugging Face hub, and with another hub's address."""

LABEL_KINDS = {
    "auto": "what the numbers leave no doubt about",
    "weights": "class weights, as they are",
    "logits": "a softmax is applied, as DATM does",
    "log": "logarithms of weights, as DD-Ranking's soft labels",
    "centred": "1/K is added, as for KIP's, FRePo's and RFAD's 1 - 1/K and -1/K",
}
"""What soft labels of other programs may be; ``labels.interpreted`` reads them."""

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
