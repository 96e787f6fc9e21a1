"""Labelled images: scikit-learn's digits, or MNIST and CIFAR-10 from a folder that the user names.

Nothing is downloaded. A file that is missing or is not what its name says is a ``ValueError`` that
names it and what is expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.kit.cifar import CIFAR10_TEST, CIFAR10_TRAIN, cifar10_folder, read_cifar_batch
from experiments.kit.idx import find_idx, read_idx

# Share of the images that is held out where a data set comes as one file.
HELD_OUT = 0.2

MNIST_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
MNIST_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class ImageSplit(NamedTuple):
    """Images float32 (count, channels, height, width) in [0, 1], labels int64 (count,) from 0."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits_or_mnist(data: Path | None) -> ImageSplit:
    """`load_mnist` of the folder, or `load_digits` where none is given."""
    return load_digits() if data is None else load_mnist(data)


def load_digits() -> ImageSplit:
    """The 1,797 handwritten digits of 8×8 pixels that scikit-learn brings along.

    1,438 of them to train on. Raises ``ValueError`` where scikit-learn is not installed.
    """
    try:
        import sklearn.datasets
    except ImportError as error:
        raise ValueError(
            "the digits that are used without --data come with scikit-learn, which is not "
            "installed; expected it, or --data with a folder of MNIST"
        ) from error
    digits = sklearn.datasets.load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 16.0
    return _split("digits", images, torch.as_tensor(digits.target, dtype=torch.int64))


def load_mnist(folder: Path) -> ImageSplit:
    """MNIST in its IDX files, gzipped or not: 60,000 images to train on and 10,000 to test on.

    A folder with only the test split (``t10k-*``) gives those 10,000 images, 8,000 of them to train
    on. Fashion-MNIST and others in the same format and with the same names load as well.
    """
    test = _read_mnist(folder, *MNIST_TEST)
    # Half of a pair is a mistake to tell, not a reason to train on the test images.
    if any(find_idx(folder, name) for name in MNIST_TRAIN):
        return ImageSplit("mnist", *_read_mnist(folder, *MNIST_TRAIN), *test)
    return _split("mnist test split", *test)


def load_cifar10(folder: Path) -> ImageSplit:
    """CIFAR-10 in its "python version", 50,000 images of 3×32×32 to train on, 10,000 to test on.

    ``folder`` is ``cifar-10-batches-py`` or the folder that has it.
    """
    inside = cifar10_folder(folder)
    images, labels = zip(*(read_cifar_batch(inside / name) for name in CIFAR10_TRAIN), strict=True)
    test_images, test_labels = read_cifar_batch(inside / CIFAR10_TEST)
    return ImageSplit(
        "cifar10",
        _unit(torch.cat(images)),
        torch.cat(labels),
        _unit(test_images),
        test_labels,
    )


def _read_mnist(folder: Path, images_name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    images_path, labels_path = (_existing(folder, name) for name in (images_name, labels_name))
    images, labels = read_idx(images_path, axes=3), read_idx(labels_path, axes=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} has {len(images)} images and {labels_path} has {len(labels)} labels; "
            "expected one label for each image"
        )
    return _unit(images[:, None]), labels.long()


def _existing(folder: Path, name: str) -> Path:
    path = find_idx(folder, name)
    if path is None:
        raise ValueError(
            f"{folder / name} is missing, plain and as {name}.gz; expected --data to be a folder "
            f"with MNIST's files {', '.join(MNIST_TEST)} and, for the full data, "
            f"{', '.join(MNIST_TRAIN)}"
        )
    return path


def _unit(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return pixels.float().div_(255.0)


def _split(name: str, images: Tensor, labels: Tensor) -> ImageSplit:
    """Hold out `HELD_OUT` of the images, the same ones for every seed of a run.

    Shuffled before: MNIST's test split has its clean half first.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    count = len(images) - round(HELD_OUT * len(images))
    return ImageSplit(name, images[:count], labels[:count], images[count:], labels[count:])
