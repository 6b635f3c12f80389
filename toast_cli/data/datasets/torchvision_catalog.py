"""The data sets of torchvision that `torchvision:NAME` reads, and why it does not read the others. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toast_cli.data.datasets.voc import VOC_CLASSES
from toast_cli.data.segmentation.dataset import UNLABELLED_PIXEL

SplitArguments = Mapping[str, Mapping[str, Any]]
"""The arguments that select each split of a set."""

TRAIN_TEST: SplitArguments = {part: {"split": part} for part in ("train", "test")}
TRAIN_VAL_TEST: SplitArguments = {part: {"split": part} for part in ("train", "val", "test")}
TRAIN_VAL: SplitArguments = {part: {"split": part} for part in ("train", "val")}
TRAIN_FLAG: SplitArguments = {"train": {"train": True}, "test": {"train": False}}
UNSPLIT: SplitArguments = {"train": {}}


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of torchvision.

    Attributes:
        marker: file or folder below the root by which the set is recognized.
        splits: the arguments of its official splits.
        extra: further arguments.
        loose: its files lie directly in the root, so that it is downloaded into a folder of its own.
        downloads: torchvision can download it.
        pixels: function from its class to the names of its classes and the class of every pixel value; None if it has a
            class for every image.
    """

    marker: str
    splits: SplitArguments = field(default_factory=lambda: TRAIN_TEST)
    extra: Mapping[str, Any] = field(default_factory=dict)
    loose: bool = False
    downloads: bool = True
    pixels: Callable[[Any], tuple[Sequence[str], Mapping[int, int]]] | None = None


def _get_cityscapes_classes(dataset: Any) -> tuple[Sequence[str], Mapping[int, int]]:
    """Return the 19 classes of the benchmark; all others have no class."""
    used = sorted((each for each in dataset.classes if 0 <= each.train_id < 255), key=lambda each: each.train_id)
    ignored = {each.id % 256: UNLABELLED_PIXEL for each in dataset.classes}
    return [each.name for each in used], {**ignored, **{each.id: each.train_id for each in used}}


def _get_voc_classes(dataset: Any) -> tuple[Sequence[str], Mapping[int, int]]:
    return VOC_CLASSES, {value: value for value in range(len(VOC_CLASSES))}


IMAGE_SETS = {part: {"image_set": part} for part in ("train", "val")}
SETS = {
    "CIFAR10": TorchvisionSet("cifar-10-batches-py", TRAIN_FLAG),
    "CIFAR100": TorchvisionSet("cifar-100-python", TRAIN_FLAG),
    "CLEVRClassification": TorchvisionSet("clevr", TRAIN_VAL),  # the labels of test are not public
    "Caltech101": TorchvisionSet("caltech101", UNSPLIT),
    "Caltech256": TorchvisionSet("caltech256", UNSPLIT),
    "Cityscapes": TorchvisionSet(
        "leftImg8bit", TRAIN_VAL, {"target_type": "semantic"}, True, False, _get_cityscapes_classes
    ),
    "Country211": TorchvisionSet(
        "country211", {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}}
    ),
    "DTD": TorchvisionSet("dtd", TRAIN_VAL_TEST),
    "EMNIST": TorchvisionSet("EMNIST", TRAIN_FLAG, {"split": "balanced"}),
    "EuroSAT": TorchvisionSet("eurosat", UNSPLIT),
    "FER2013": TorchvisionSet("fer2013", downloads=False),
    "FGVCAircraft": TorchvisionSet("fgvc-aircraft-2013b", TRAIN_VAL_TEST),
    "FashionMNIST": TorchvisionSet("FashionMNIST", TRAIN_FLAG),
    "Flowers102": TorchvisionSet("flowers-102", TRAIN_VAL_TEST),
    "Food101": TorchvisionSet("food-101"),
    "GTSRB": TorchvisionSet("gtsrb"),
    "INaturalist": TorchvisionSet(
        "2021_train", {"train": {"version": "2021_train"}, "val": {"version": "2021_valid"}}, loose=True
    ),
    "Imagenette": TorchvisionSet("imagenette2", TRAIN_VAL),
    "KMNIST": TorchvisionSet("KMNIST", TRAIN_FLAG),
    "MNIST": TorchvisionSet("MNIST", TRAIN_FLAG),
    "OxfordIIITPet": TorchvisionSet("oxford-iiit-pet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "PCAM": TorchvisionSet("pcam", TRAIN_VAL_TEST),
    "Places365": TorchvisionSet(
        "categories_places365.txt", {"train": {"split": "train-standard"}, "val": {"split": "val"}}, loose=True
    ),
    "QMNIST": TorchvisionSet("QMNIST", TRAIN_FLAG),
    "RenderedSST2": TorchvisionSet("rendered-sst2", TRAIN_VAL_TEST),
    "SBDataset": TorchvisionSet("cls", IMAGE_SETS, {"mode": "segmentation"}, True, True, _get_voc_classes),
    "SEMEION": TorchvisionSet("semeion.data", UNSPLIT, loose=True),
    "STL10": TorchvisionSet("stl10_binary"),
    "SUN397": TorchvisionSet("SUN397", UNSPLIT),
    "SVHN": TorchvisionSet("train_32x32.mat", loose=True),
    "StanfordCars": TorchvisionSet("stanford_cars", downloads=False),
    "USPS": TorchvisionSet("usps.bz2", TRAIN_FLAG, loose=True),
    "VOCSegmentation": TorchvisionSet("VOCdevkit/VOC2012", IMAGE_SETS, {}, False, True, _get_voc_classes),
}
"""Sets by the name of their class in `torchvision.datasets`."""

OTHER_SETS = {
    **dict.fromkeys(("ImageFolder", "DatasetFolder"), "it is any folder of images: use folder:PATH"),
    "ImageNet": "use imagenet, which also reads the official archives in place",
    "CelebA": "it has 40 attributes for every image instead of one class",
    **dict.fromkeys(("CocoDetection", "Kitti", "VOCDetection", "WIDERFace"), "it has boxes instead of classes"),
    **dict.fromkeys(("CocoCaptions", "Flickr8k", "Flickr30k", "SBU"), "it has captions instead of classes"),
    **dict.fromkeys(("HMDB51", "Kinetics", "MovingMNIST", "UCF101"), "it has videos"),
    **dict.fromkeys(("LFWPairs", "LFWPeople", "PhotoTour"), "it is made for the comparison of pairs"),
    **dict.fromkeys(("LSUN", "LSUNClass"), "its LMDB files are not supported"),
    "Omniglot": "its two parts have different classes",
    "FakeData": "its images are noise",
}
"""Sets that are refused, with the reason."""
