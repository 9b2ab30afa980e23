"""ImageNet from files written here in its official layouts, read through `load`."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest

from tcl_jax import data
from tcl_jax.data import sources
from tcl_jax.errors import InputError

WNIDS = ("n01440764", "n01443537")  # ImageNet's classes 0 and 1


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "reachable", lambda url: False)


def _by_label(source: data.Source) -> dict[int, np.ndarray]:
    """Images by label, for splits that hold each label once."""
    elements = [source[index] for index in range(len(source))]
    assert len({element["label"] for element in elements}) == len(elements)
    return {element["label"]: element["image"] for element in elements}


def _tar(path: Path, files: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _encode(color: tuple[int, int, int], size: tuple[int, int], extension: str) -> bytes:
    image = np.full((*size, 3), color[::-1], np.uint8)
    return cv2.imencode(extension, image, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()


RED, BLUE = (200, 30, 30), (30, 30, 200)
TRAIN = {
    f"{WNIDS[0]}/{WNIDS[0]}_1.JPEG": _encode(RED, (60, 90), ".jpg"),
    f"{WNIDS[1]}/{WNIDS[1]}_7.JPEG": _encode(BLUE, (90, 50), ".jpg"),
}


def _validation() -> dict[str, bytes]:
    """The first two validation images; their labels are 65 and 970 in the official list."""
    return {
        "ILSVRC2012_val_00000001.JPEG": _encode(RED, (70, 70), ".jpg"),
        "ILSVRC2012_val_00000002.JPEG": _encode(BLUE, (70, 99), ".jpg"),
    }


def _write_imagenet(folder: Path, train_tar: bool, validation: str) -> None:
    if train_tar:
        inner = {}
        for path, content in TRAIN.items():
            wnid, name = path.split("/")
            _tar(folder / "inner.tar", {name: content})
            inner[f"{wnid}.tar"] = (folder / "inner.tar").read_bytes()
        _tar(folder / "ILSVRC2012_img_train.tar", inner)
    else:
        _write_folder(folder / "train", TRAIN)
    if validation == "tar":
        _tar(folder / "ILSVRC2012_img_val.tar", _validation())
    elif validation == "flat":
        _write_folder(folder / "val", _validation())
    else:
        labelled = zip(WNIDS, _validation().items(), strict=True)
        _write_folder(folder / "val", {f"{wnid}/{n}": content for wnid, (n, content) in labelled})


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("train_tar", "validation", "labels"),
    [(True, "tar", [65, 970]), (False, "flat", [65, 970]), (False, "classes", [0, 1])],
)
def test_imagenet_is_read_in_every_form(
    tmp_path: Path, train_tar: bool, validation: str, labels: list[int]
) -> None:
    _write_imagenet(tmp_path, train_tar, validation)
    prepared = tmp_path / "prepared"
    dataset = data.load("imagenet2012", data_dir=prepared, raw_dir=tmp_path, image_size=32)
    assert dataset.info.image_shape == (32, 32, 3)
    assert (dataset.info.num_train, dataset.info.num_test) == (2, 2)
    for source, expected in ((dataset.train, [0, 1]), (dataset.test, labels)):
        images = _by_label(source)
        assert sorted(images) == expected
        for label, color in zip(expected, (RED, BLUE), strict=True):
            assert images[label].shape == (32, 32, 3)
            assert np.abs(images[label].astype(int) - color).max() <= 3


def test_imagenet_png_is_stored_as_jpeg(tmp_path: Path) -> None:
    _write_imagenet(tmp_path, train_tar=False, validation="flat")
    name = f"{WNIDS[0]}/{WNIDS[0]}_1.JPEG"
    (tmp_path / "train" / name).write_bytes(_encode(RED, (60, 90), ".png"))
    dataset = data.load("imagenet2012", data_dir=tmp_path, raw_dir=tmp_path, image_size=32)
    assert isinstance(dataset.train, data.JpegSource)
    assert all(record["image"][:2] == b"\xff\xd8" for record in dataset.train.records)
    assert np.abs(_by_label(dataset.train)[0].astype(int) - RED).max() <= 3


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / "val/x.JPEG").write_bytes(b"\xff\xd8"), "neither in a folder"),
        (lambda root: (root / "val/ILSVRC2012_val_00050001.JPEG").write_bytes(b""), "neither"),
        (lambda root: _write_folder(root / "train/cats", {"a.JPEG": b""}), "not an ImageNet class"),
        (lambda root: next(root.glob("train/*/*")).write_bytes(b"<html>"), "damaged"),
        (lambda root: (root / "val").rename(root / "validation"), "also needs .*val.tar or val/"),
        (lambda root: [path.unlink() for path in root.glob("val/*")], "holds no images"),
    ],
    ids=["name", "number", "class", "html", "no-val", "empty"],
)
def test_damaged_imagenet_folders_are_named(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    _write_imagenet(tmp_path, train_tar=False, validation="flat")
    damage(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        data.load("imagenet2012", data_dir=tmp_path / "prepared", raw_dir=tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("keep", [700, -1100])
def test_truncated_imagenet_tar_is_named(tmp_path: Path, keep: int) -> None:
    _write_imagenet(tmp_path, train_tar=True, validation="tar")
    tar = tmp_path / "ILSVRC2012_img_train.tar"
    content = tar.read_bytes().rstrip(b"\0")
    tar.write_bytes(content[:keep])
    with pytest.raises(InputError, match="not a whole tar file") as error:
        data.load("imagenet2012", data_dir=tmp_path / "prepared", raw_dir=tmp_path)
    assert str(tar) in str(error.value)


@pytest.mark.parametrize("augment", ["none", "resized_crop_flip"])
def test_truncated_photograph_is_named(tmp_path: Path, augment: Any) -> None:
    _write_imagenet(tmp_path, train_tar=False, validation="flat")
    path = tmp_path / "train" / WNIDS[1] / f"{WNIDS[1]}_7.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    dataset = data.load("imagenet2012", data_dir=tmp_path, raw_dir=tmp_path, image_size=32)
    with pytest.raises(InputError, match=f"{path.name}.*truncated"):
        next(data.train_batches(dataset, batch_size=2, seed=0, augment=augment))
