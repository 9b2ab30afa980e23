"""ImageNet from files written here in its official layouts, read through `load`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imagenet_files import (
    BLUE,
    RED,
    TRAIN,
    VALIDATION,
    WNIDS,
    class_tars,
    encode,
    pillow,
    tar,
    warnings_of,
    write_folder,
    write_imagenet,
)

from tcl_jax import data
from tcl_jax.data import sources
from tcl_jax.data.jpeg import decode


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "reachable", lambda url: False)


def _by_label(source: data.Source) -> dict[int, np.ndarray]:
    """Images by label, for splits that hold each label once."""
    elements = [source[index] for index in range(len(source))]
    assert len({element["label"] for element in elements}) == len(elements)
    return {element["label"]: element["image"] for element in elements}


@pytest.mark.parametrize(
    ("train_tar", "validation", "labels"),
    [(True, "tar", [65, 970]), (False, "flat", [65, 970]), (False, "classes", [0, 1])],
)
def test_imagenet_is_read_in_every_form(
    tmp_path: Path, train_tar: bool, validation: str, labels: list[int]
) -> None:
    write_imagenet(tmp_path, train_tar, validation)
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
    write_imagenet(tmp_path, train_tar=False, validation="flat")
    name = f"{WNIDS[0]}/{WNIDS[0]}_1.JPEG"
    (tmp_path / "train" / name).write_bytes(encode(RED, (60, 90), ".png"))
    dataset = data.load("imagenet2012", data_dir=tmp_path, raw_dir=tmp_path, image_size=32)
    assert isinstance(dataset.train, data.JpegSource)
    assert all(record["image"][:2] == b"\xff\xd8" for record in dataset.train.records)
    assert np.abs(_by_label(dataset.train)[0].astype(int) - RED).max() <= 3


def _dotted(root: Path) -> None:
    """Tar files made with `tar c .`."""
    tar(root / "ILSVRC2012_img_train.tar", class_tars(root, front="./", within="./"))
    tar(root / "ILSVRC2012_img_val.tar", {f"./{n}": c for n, c in VALIDATION.items()})


def _in_front(root: Path) -> None:
    """A folder in front, in the tar files and in those within."""
    tar(root / "ILSVRC2012_img_train.tar", class_tars(root, front="train/", within="images/"))
    tar(root / "ILSVRC2012_img_val.tar", {f"some/val/{n}": c for n, c in VALIDATION.items()})


def _plain_folders(root: Path) -> None:
    """Tar files of unpacked folders."""
    tar(root / "ILSVRC2012_img_train.tar", {f"train/{n}": c for n, c in TRAIN.items()})
    tar(root / "ILSVRC2012_img_val.tar", VALIDATION)


def _half_unpacked(root: Path) -> None:
    """The outer tar file unpacked, and not those within."""
    write_folder(root / "train", class_tars(root))
    write_folder(root / "val", VALIDATION)


def _kaggle(root: Path) -> None:
    below = root / "ILSVRC" / "Data" / "CLS-LOC"
    write_folder(below / "train", TRAIN)
    write_folder(below / "val", VALIDATION)
    write_folder(below / "test", {"ILSVRC2012_test_00000001.JPEG": b""})
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n")


def _deeper(root: Path) -> None:
    write_folder(root / "train", {n.replace("/", "/images/"): c for n, c in TRAIN.items()})
    write_folder(root / "val", {f"images/{n}": c for n, c in VALIDATION.items()})


def _mixed_endings(root: Path) -> None:
    first, second = TRAIN
    renamed = {first.replace("JPEG", "jpeg"): TRAIN[first], second[:-4] + "JPG": TRAIN[second]}
    write_folder(root / "train", renamed)
    first, second = VALIDATION
    renamed = {first.replace("JPEG", "jpg"): VALIDATION[first], second: VALIDATION[second]}
    write_folder(root / "val", renamed)


def _of_a_mac(root: Path) -> None:
    write_imagenet(root, train_tar=False, validation="flat")
    forks = {f"{Path(n).parent}/._{Path(n).name}": b"\0\5\x16\7" for n in TRAIN}
    write_folder(root / "train", {**forks, ".DS_Store": b"\0", f"{WNIDS[0]}/.DS_Store": b"\0"})
    tar(
        root / "ILSVRC2012_img_val.tar",
        {"._.": b"\0", "__MACOSX/._x.JPEG": b"\0"}
        | {f"val/._{n}": b"\0" for n in VALIDATION}
        | {f"val/{n}": c for n, c in VALIDATION.items()},
    )


def _of_windows_and_servers(root: Path) -> None:
    """Caches of thumbnails; Synology's are JPEG files in a folder beside the images."""
    write_imagenet(root, train_tar=False, validation="flat")
    droppings = ("Thumbs.db", "thumbs.db", "desktop.ini", f"@eaDir/{WNIDS[0]}_1.JPEG/THUMB_M.jpg")
    thumbnail = encode((0, 0, 0), (5, 5), ".jpg")
    for folder in (root / "train", root / "train" / WNIDS[0], root / "val"):
        write_folder(folder, dict.fromkeys(droppings, thumbnail))
    write_folder(root / "train", {"$RECYCLE.BIN/x.jpg": b"", "System Volume Information/y": b""})


def _compressed(root: Path) -> None:
    """Packed again, with compression, under plainer names; within, too."""
    inner = {}
    for path, content in TRAIN.items():
        wnid, name = path.split("/")
        tar(root / "inner", {name: content}, "w:gz")
        inner[f"{wnid}.tar.gz"] = (root / "inner").read_bytes()
    tar(root / "train.tgz", inner, "w:gz")
    tar(root / "val.tar", {f"val/{n}": c for n, c in VALIDATION.items()}, "w:gz")


def _in_tfds_own_place(root: Path) -> None:
    (place := root / "prepared" / "downloads" / "manual").mkdir(parents=True)
    write_imagenet(place, train_tar=True, validation="tar")


def _linked(root: Path) -> None:
    write_imagenet(root / "elsewhere", train_tar=False, validation="flat")
    (root / "val").symlink_to(root / "elsewhere" / "val")
    (root / "train").mkdir()
    for wnid in WNIDS:
        (root / "train" / wnid).symlink_to(root / "elsewhere" / "train" / wnid)


@pytest.mark.parametrize(
    "write",
    [
        *(_dotted, _in_front, _plain_folders, _half_unpacked, _kaggle, _deeper),
        *(_mixed_endings, _of_a_mac, _of_windows_and_servers, _compressed, _in_tfds_own_place),
        _linked,
    ],
)
def test_imagenet_is_read_as_people_have_it(
    tmp_path: Path, write: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    dataset = data.load(
        "imagenet2012", data_dir=tmp_path / "prepared", raw_dir=tmp_path, image_size=32
    )
    for source, expected in ((dataset.train, [0, 1]), (dataset.test, [65, 970])):
        images = _by_label(source)
        assert sorted(images) == expected
        for label, color in zip(expected, (RED, BLUE), strict=True):
            assert np.abs(images[label].astype(int) - color).max() <= 3
    assert [warning.partition(": ")[2] for warning in warnings_of(caplog)] == [
        f"2 images, where ImageNet has {count}" for count in (1281167, 50000)
    ]


def test_what_is_no_image_is_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_imagenet(tmp_path, train_tar=False, validation="flat")
    write_folder(tmp_path / "train", {"readme.txt": b"x", f"{WNIDS[0]}/boxes.xml": b"x"})
    dataset = data.load("imagenet2012", data_dir=tmp_path / "p", raw_dir=tmp_path, image_size=32)
    assert len(dataset.train) == 2
    assert warnings_of(caplog)[0] == (
        f"{tmp_path / 'train'}: left out what is no image (2, as readme.txt)"
    )


@pytest.mark.parametrize("ending", ["JPEG", "png"])
@pytest.mark.parametrize(
    "kind",
    [
        *("PNG", "GIF", "BMP", "WEBP", "rgba", "cmyk", "grey", "exif"),
        *("junk before the end marker", "junk after it"),
    ],
)
def test_images_of_every_kind_are_read(tmp_path: Path, kind: str, ending: str) -> None:
    """Whatever their ending says, as ImageNet's own PNG and CMYK files do."""
    name = f"{WNIDS[0]}/{WNIDS[0]}_5.{ending}"
    write_imagenet(tmp_path, train_tar=False, validation="flat")
    write_folder(tmp_path / "train", {name: pillow(kind)})
    (tmp_path / "train" / next(iter(TRAIN))).unlink()
    dataset = data.load("imagenet2012", data_dir=tmp_path / "p", raw_dir=tmp_path, image_size=32)
    assert all(record["image"][:2] == b"\xff\xd8" for record in dataset.train.records)
    # The orientation is not heeded: a photograph of 60×90, whatever EXIF says.
    shapes = [decode(record["image"]).shape for record in dataset.train.records]
    assert sorted(shapes) == [(60, 90, 3), (90, 50, 3)]
    expected = (100, 100, 100) if kind == "grey" else RED
    found = _by_label(dataset.train)[0].astype(int)
    assert np.abs(found - expected).max() <= (12 if kind in ("GIF", "WEBP", "cmyk") else 3)


def test_one_name_in_two_classes_is_two_images(tmp_path: Path) -> None:
    write_imagenet(tmp_path, train_tar=False, validation="flat")
    shutil.rmtree(tmp_path / "train")
    images = {f"{w}/1.jpg": c for w, c in zip(WNIDS, TRAIN.values(), strict=True)}
    write_folder(tmp_path / "train", images)
    dataset = data.load("imagenet2012", data_dir=tmp_path / "p", raw_dir=tmp_path, image_size=32)
    images = _by_label(dataset.train)
    for label, color in enumerate((RED, BLUE)):
        assert np.abs(images[label].astype(int) - color).max() <= 3
