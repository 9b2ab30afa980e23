"""ImageNet from files written here in its official layouts, read through `load`."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from PIL import Image

from tcl_jax import data
from tcl_jax.data import imagenet, sources
from tcl_jax.data.jpeg import decode
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


def _class_tars(folder: Path, front: str = "", within: str = "") -> dict[str, bytes]:
    """A tar file for each class, with what stands in front of its name and of those within."""
    tars = {}
    for path, content in TRAIN.items():
        wnid, name = path.split("/")
        _tar(folder / "inner.tar", {within + name: content})
        tars[f"{front}{wnid}.tar"] = (folder / "inner.tar").read_bytes()
    (folder / "inner.tar").unlink()
    return tars


def _write_imagenet(folder: Path, train_tar: bool, validation: str) -> None:
    if train_tar:
        _tar(folder / "ILSVRC2012_img_train.tar", _class_tars(folder))
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


def _dotted(root: Path) -> None:
    """Tar files made with `tar c .`."""
    _tar(root / "ILSVRC2012_img_train.tar", _class_tars(root, front="./", within="./"))
    _tar(root / "ILSVRC2012_img_val.tar", {f"./{n}": c for n, c in _validation().items()})


def _in_front(root: Path) -> None:
    """A folder in front, in the tar files and in those within."""
    _tar(root / "ILSVRC2012_img_train.tar", _class_tars(root, front="train/", within="images/"))
    _tar(root / "ILSVRC2012_img_val.tar", {f"some/val/{n}": c for n, c in _validation().items()})


def _plain_folders(root: Path) -> None:
    """Tar files of unpacked folders."""
    _tar(root / "ILSVRC2012_img_train.tar", {f"train/{n}": c for n, c in TRAIN.items()})
    _tar(root / "ILSVRC2012_img_val.tar", _validation())


def _half_unpacked(root: Path) -> None:
    """The outer tar file unpacked, and not those within."""
    _write_folder(root / "train", _class_tars(root))
    _write_folder(root / "val", _validation())


def _kaggle(root: Path) -> None:
    below = root / "ILSVRC" / "Data" / "CLS-LOC"
    _write_folder(below / "train", TRAIN)
    _write_folder(below / "val", _validation())
    _write_folder(below / "test", {"ILSVRC2012_test_00000001.JPEG": b""})
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n")


def _deeper(root: Path) -> None:
    _write_folder(root / "train", {n.replace("/", "/images/"): c for n, c in TRAIN.items()})
    _write_folder(root / "val", {f"images/{n}": c for n, c in _validation().items()})


def _mixed_endings(root: Path) -> None:
    first, second = TRAIN
    renamed = {first.replace("JPEG", "jpeg"): TRAIN[first], second[:-4] + "JPG": TRAIN[second]}
    _write_folder(root / "train", renamed)
    first, second = _validation()
    renamed = {first.replace("JPEG", "jpg"): _validation()[first], second: _validation()[second]}
    _write_folder(root / "val", renamed)


def _of_a_mac(root: Path) -> None:
    _write_imagenet(root, train_tar=False, validation="flat")
    forks = {f"{Path(n).parent}/._{Path(n).name}": b"\0\5\x16\7" for n in TRAIN}
    _write_folder(root / "train", {**forks, ".DS_Store": b"\0", f"{WNIDS[0]}/.DS_Store": b"\0"})
    _tar(
        root / "ILSVRC2012_img_val.tar",
        {"._.": b"\0", "__MACOSX/._x.JPEG": b"\0"}
        | {f"val/._{n}": b"\0" for n in _validation()}
        | {f"val/{n}": c for n, c in _validation().items()},
    )


def _linked(root: Path) -> None:
    _write_imagenet(root / "elsewhere", train_tar=False, validation="flat")
    (root / "val").symlink_to(root / "elsewhere" / "val")
    (root / "train").mkdir()
    for wnid in WNIDS:
        (root / "train" / wnid).symlink_to(root / "elsewhere" / "train" / wnid)


@pytest.mark.parametrize(
    "write",
    [
        *(_dotted, _in_front, _plain_folders, _half_unpacked, _kaggle, _deeper),
        *(_mixed_endings, _of_a_mac, _linked),
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
    assert not [r for r in caplog.records if r.name == "root"]


def test_what_is_no_image_is_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write_imagenet(tmp_path, train_tar=False, validation="flat")
    _write_folder(tmp_path / "train", {"readme.txt": b"x", f"{WNIDS[0]}/boxes.xml": b"x"})
    dataset = data.load("imagenet2012", data_dir=tmp_path / "p", raw_dir=tmp_path, image_size=32)
    assert len(dataset.train) == 2
    (said,) = [r.message for r in caplog.records if r.name == "root"]
    assert said == f"{tmp_path / 'train'}: left out what is no image (2, as readme.txt)"


def _pillow(kind: str) -> bytes:
    file = io.BytesIO()
    image = Image.new("RGB", (90, 60), RED)
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        image.save(file, "JPEG", quality=100, exif=exif)
    elif kind == "junk before the end marker":
        image.save(file, "JPEG", quality=100)
        return file.getvalue()[:-2] + b"\0\x12\x34" * 500 + b"\xff\xd9"
    elif kind == "junk after it":
        image.save(file, "JPEG", quality=100)
        return file.getvalue() + b"\0\x12\x34" * 500
    elif kind == "cmyk":
        image.convert("CMYK").save(file, "JPEG", quality=100)
    elif kind == "grey":
        Image.new("L", (90, 60), 100).save(file, "JPEG", quality=100)
    elif kind == "rgba":
        Image.new("RGBA", (90, 60), (*RED, 255)).save(file, "PNG")
    else:
        image.save(file, kind)
    return file.getvalue()


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
    _write_imagenet(tmp_path, train_tar=False, validation="flat")
    _write_folder(tmp_path / "train", {name: _pillow(kind)})
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
    _write_imagenet(tmp_path, train_tar=False, validation="flat")
    shutil.rmtree(tmp_path / "train")
    images = {f"{w}/1.jpg": c for w, c in zip(WNIDS, TRAIN.values(), strict=True)}
    _write_folder(tmp_path / "train", images)
    dataset = data.load("imagenet2012", data_dir=tmp_path / "p", raw_dir=tmp_path, image_size=32)
    images = _by_label(dataset.train)
    for label, color in enumerate((RED, BLUE)):
        assert np.abs(images[label].astype(int) - color).max() <= 3


def test_all_that_cannot_be_used_is_named_at_once(tmp_path: Path) -> None:
    _write_imagenet(tmp_path, train_tar=False, validation="flat")
    whole = TRAIN[f"{WNIDS[0]}/{WNIDS[0]}_1.JPEG"]
    _write_folder(
        tmp_path / "train",
        {
            f"{WNIDS[0]}/cut.JPEG": whole[: len(whole) // 2],
            f"{WNIDS[0]}/no end.JPEG": whole[:-2],
            f"{WNIDS[1]}/page.jpg": b"<html>",
            f"{WNIDS[1]}/empty.jpg": b"",
            f"{WNIDS[1]}/cut.png": _pillow("PNG")[:-100],
            f"{WNIDS[1]}/{WNIDS[0]}_1.JPEG": whole,
            "cats/1.JPEG": whole,
            "cats/2.JPEG": whole,
            "dogs/1.JPEG": whole,
            "loose.JPEG": whole,
            "ILSVRC2012_val_00000003.JPEG": whole,
        },
    )
    _write_folder(
        tmp_path / "val",
        {"ILSVRC2012_val_00000003.JPEG": whole[:-9], "ILSVRC2012_val_00050001.JPEG": whole},
    )
    (tmp_path / "train" / WNIDS[0] / "link.JPEG").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError) as error:
        data.load("imagenet2012", data_dir=tmp_path / "p", raw_dir=tmp_path)
    assert str(error.value).split("holds images")[1] == (
        " that cannot be used ("
        "neither in a folder of their class: train/ILSVRC2012_val_00000003.JPEG, "
        "train/loose.JPEG; "
        "in a folder that is not an ImageNet class: train/cats, train/dogs; "
        f"unreadable, truncated or damaged: train/{WNIDS[0]}/cut.JPEG, "
        f"train/{WNIDS[0]}/link.JPEG, train/{WNIDS[0]}/no end.JPEG, "
        f"train/{WNIDS[1]}/cut.png, train/{WNIDS[1]}/empty.jpg, train/{WNIDS[1]}/page.jpg, "
        "val/ILSVRC2012_val_00000003.JPEG; "
        f"there twice: train/{WNIDS[1]}/{WNIDS[0]}_1.JPEG and train/{WNIDS[0]}/{WNIDS[0]}_1.JPEG; "
        "neither in a folder of their class nor named like ILSVRC2012_val_00000001.JPEG: "
        "val/ILSVRC2012_val_00050001.JPEG): replace or remove them"
    )
    # Once they are, it is prepared.
    for path in [*tmp_path.glob("train/*/*"), *tmp_path.glob("train/*"), *tmp_path.glob("val/*")]:
        inside = "/".join(path.parts[len(tmp_path.parts) + 1 :])
        if not path.is_dir() and inside not in TRAIN and inside not in _validation():
            path.unlink()
    dataset = data.load("imagenet2012", data_dir=tmp_path / "p", raw_dir=tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (2, 2)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda root: (root / "val/x.JPEG").write_bytes(b"\xff\xd8"),
            "neither in a folder of their class nor named like",
        ),
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
def test_a_photograph_damaged_once_it_was_prepared_is_named(
    tmp_path: Path, augment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_imagenet(tmp_path, train_tar=False, validation="flat")
    path = tmp_path / "train" / WNIDS[1] / f"{WNIDS[1]}_7.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    # As an older version, or TFDS itself, prepared it.
    monkeypatch.setattr(imagenet, "_as_rgb_jpeg", lambda name, content: content)
    dataset = data.load("imagenet2012", data_dir=tmp_path, raw_dir=tmp_path, image_size=32)
    with pytest.raises(InputError, match=f"{path.name}.*truncated.*names damaged raw files"):
        next(data.train_batches(dataset, batch_size=2, seed=0, augment=augment))
