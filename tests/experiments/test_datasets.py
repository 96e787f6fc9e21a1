"""Images from files: MNIST's IDX, CIFAR-10's pickles, scikit-learn's digits, and files that lie."""

from __future__ import annotations

import builtins
import gzip
import io
import os
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from experiments.kit.cifar import CIFAR10_TEST, CIFAR10_TRAIN
from experiments.kit.datasets import (
    MNIST_TEST,
    MNIST_TRAIN,
    digits_or_mnist,
    load_cifar10,
    load_digits,
    load_mnist,
)
from experiments.kit.idx import read_idx

MNIST_IMAGES, MNIST_LABELS = MNIST_TEST


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(path: Path, content: bytes, *, zipped: bool) -> None:
    if zipped:
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content)
    path.write_bytes(content)


def write_mnist(folder: Path, count: int, names: tuple[str, str], *, zipped: bool = True) -> None:
    """Images whose pixels are all their index, labelled with its last digit."""
    index = np.arange(count, dtype=np.uint8)
    images = np.broadcast_to(index[:, None, None], (count, 28, 28))
    write(folder / names[0], idx(np.ascontiguousarray(images)), zipped=zipped)
    write(folder / names[1], idx(index % 10), zipped=zipped)


# --- MNIST -------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_the_full_mnist_keeps_its_splits_and_their_order(tmp_path, zipped):
    write_mnist(tmp_path, 60, MNIST_TRAIN, zipped=zipped)
    write_mnist(tmp_path, 10, MNIST_TEST, zipped=zipped)
    split = load_mnist(tmp_path)
    assert split.name == "mnist"
    assert split.train_images.shape == (60, 1, 28, 28)
    assert split.test_images.shape == (10, 1, 28, 28)
    assert torch.equal(split.train_images[:, 0, 5, 7] * 255, torch.arange(60.0))
    assert torch.equal(split.train_labels, torch.arange(60) % 10)
    assert torch.equal(split.test_labels, torch.arange(10))
    assert split.train_images.dtype == torch.float32
    assert split.train_labels.dtype == torch.int64


def test_the_test_split_alone_is_held_out_from_the_same_way_every_time(tmp_path):
    write_mnist(tmp_path, 100, MNIST_TEST)
    torch.manual_seed(1)
    first = load_mnist(tmp_path)
    torch.manual_seed(2)
    again = digits_or_mnist(tmp_path)
    assert first.name == "mnist test split"
    for one, other in zip(first[1:], again[1:], strict=True):
        assert torch.equal(one, other)
    trained = (first.train_images[:, 0, 0, 0] * 255).round().long()
    held_out = (first.test_images[:, 0, 0, 0] * 255).round().long()
    assert len(trained) == 80
    assert sorted([*trained.tolist(), *held_out.tolist()]) == list(range(100))
    # An image keeps its label, and the order of the file, which is by difficulty, is gone.
    assert torch.equal(first.train_labels, trained % 10)
    assert torch.equal(first.test_labels, held_out % 10)
    assert 20 < held_out.float().mean() < 80


def test_a_plain_file_goes_before_a_gzipped_one(tmp_path):
    write_mnist(tmp_path, 20, MNIST_TEST)
    write_mnist(tmp_path, 10, MNIST_TEST, zipped=False)
    split = load_mnist(tmp_path)
    assert len(split.train_labels) + len(split.test_labels) == 10


@pytest.mark.parametrize(
    ("missing", "present"),
    [
        (MNIST_TEST[0], ()),
        (MNIST_TEST[1], MNIST_TEST[:1]),
        (MNIST_TEST[0], MNIST_TRAIN),
        (MNIST_TRAIN[1], (*MNIST_TEST, MNIST_TRAIN[0])),
        (MNIST_TRAIN[0], (*MNIST_TEST, MNIST_TRAIN[1])),
    ],
)
def test_a_missing_file_is_named_with_what_is_expected(tmp_path, missing, present):
    for names in (MNIST_TEST, MNIST_TRAIN):
        write_mnist(tmp_path, 10, names)
    for name in {*MNIST_TEST, *MNIST_TRAIN} - set(present):
        (tmp_path / f"{name}.gz").unlink()
    with pytest.raises(ValueError, match=f"{missing} is missing, plain and as {missing}.gz") as e:
        load_mnist(tmp_path)
    assert all(name in str(e.value) for name in (*MNIST_TEST, *MNIST_TRAIN))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load_mnist(tmp_path / "nowhere")


def test_as_many_labels_as_images(tmp_path):
    write_mnist(tmp_path, 10, MNIST_TEST)
    write(tmp_path / MNIST_LABELS, idx(np.zeros(9, np.uint8)), zipped=True)
    with pytest.raises(ValueError, match=r"has 10 images and .* has 9 labels"):
        load_mnist(tmp_path)


# --- IDX ---------------------------------------------------------------------------------------


def test_idx_keeps_sizes_and_order(tmp_path):
    values = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    (tmp_path / "a").write_bytes(idx(values))
    read = read_idx(tmp_path / "a", axes=3)
    assert torch.equal(read, torch.from_numpy(values))
    read[0, 0, 0] = 7  # its memory is its own


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing; expected 00000801"),
        (b"\0\0\x08\x01\0\0", "begins with 00000801"),
        (idx(np.zeros((2, 2), np.uint8)), "begins with 00000802; expected 00000801"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "begins with 00000d01"),
        (idx(np.zeros(5, np.uint8))[:-1], "has 4 values; expected 5"),
        (idx(np.zeros(5, np.uint8)) + b"\0", "has 6 values; expected 5"),
        (b"<!DOCTYPE html>", "begins with 3c21444f"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path, content, message):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_idx(tmp_path / "labels", axes=1)
    assert "labels" in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "no gzip", "flipped"])
def test_a_gzip_file_that_is_not_whole_is_named(tmp_path, damage):
    rng = np.random.default_rng(0)
    content = bytearray(gzip.compress(idx(rng.integers(0, 255, 1000).astype(np.uint8))))
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray(b"not gzip")
    (tmp_path / "labels.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.gz is no whole gzip file"):
        read_idx(tmp_path / "labels.gz", axes=1)


# --- digits ------------------------------------------------------------------------------------


def test_digits_come_with_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    split = digits_or_mnist(None)
    assert split.name == "digits"
    assert split.train_images.shape == (1438, 1, 8, 8)
    assert split.test_images.shape == (359, 1, 8, 8)
    images = torch.cat([split.train_images, split.test_images])
    assert images.min() == 0.0
    assert images.max() == 1.0
    labels = torch.cat([split.train_labels, split.test_labels])
    truth = datasets.load_digits()
    assert torch.equal(labels.bincount(), torch.as_tensor(truth.target).bincount())
    assert float(images.double().sum() * 16) == truth.images.sum()


def test_without_scikit_learn_the_remedy_is_named(monkeypatch):
    imported = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return imported(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match="scikit-learn, which is not installed; expected it, or"):
        load_digits()


# --- CIFAR-10 ----------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Byte strings as Python 2 wrote them, for which Python 3 has no opcode of its own."""

    def save_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: save_string}


def python2_pickle(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def write_cifar(folder: Path, count: int = 2, dump=python2_pickle) -> None:
    """Batch i (the test batch is 0) has pixels 10 i + channel and labels i."""
    folder.mkdir(exist_ok=True)
    for i, name in enumerate((CIFAR10_TEST, *CIFAR10_TRAIN)):
        pixels = np.repeat(np.arange(3, dtype=np.uint8), 1024) + np.uint8(10 * i)
        batch = {b"data": np.tile(pixels, (count, 1)), b"labels": [i] * count}
        (folder / name).write_bytes(dump(batch))


@pytest.mark.parametrize("protocol", [None, 4, 5])
@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar_batches_in_their_order(tmp_path, inner, protocol, recwarn):
    def dump(batch: object) -> bytes:
        return python2_pickle(batch) if protocol is None else pickle.dumps(batch, protocol)

    write_cifar(tmp_path / inner, dump=dump)
    split = load_cifar10(tmp_path)
    assert split.name == "cifar10"
    assert split.train_images.shape == (10, 3, 32, 32)
    assert split.test_images.shape == (2, 3, 32, 32)
    assert split.train_labels.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert torch.allclose(split.train_images[0, :, 4, 9] * 255, torch.tensor([10.0, 11.0, 12.0]))
    assert torch.equal(split.test_labels, torch.zeros(2, dtype=torch.int64))
    assert not recwarn.list


def test_a_missing_batch_is_named(tmp_path):
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(ValueError, match="data_batch_3 is missing; expected --data to be a folder"):
        load_cifar10(tmp_path)


def test_a_pickle_that_calls_anything_else_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    write_cifar(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Harmful(), b"labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_1 is no batch of CIFAR-10 \(it calls"):
        load_cifar10(tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", pickle.dumps({b"data": np.zeros((2, 3), np.uint8), b"labels": [0, 0]}),
     pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}), pickle.dumps([1])],
)  # fmt: skip
def test_a_batch_of_something_else_is_named(tmp_path, content):
    write_cifar(tmp_path)
    (tmp_path / CIFAR10_TEST).write_bytes(content)
    with pytest.raises(ValueError, match="test_batch is no batch of CIFAR-10"):
        load_cifar10(tmp_path)
