"""ImageNet's files in its official layouts, with two images a split, written here."""

import io
import tarfile
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from PIL import Image

WNIDS = ("n01440764", "n01443537")  # ImageNet's classes 0 and 1


def tar(path: Path, files: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> None:
    """Write a tar file of `files`."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def encode(color: tuple[int, int, int], size: tuple[int, int], extension: str) -> bytes:
    """An image of one colour."""
    image = np.full((*size, 3), color[::-1], np.uint8)
    return cv2.imencode(extension, image, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()


RED, BLUE = (200, 30, 30), (30, 30, 200)
TRAIN = {
    f"{WNIDS[0]}/{WNIDS[0]}_1.JPEG": encode(RED, (60, 90), ".jpg"),
    f"{WNIDS[1]}/{WNIDS[1]}_7.JPEG": encode(BLUE, (90, 50), ".jpg"),
}


# The labels of these are 65 and 970 in the official list.
VALIDATION = {
    "ILSVRC2012_val_00000001.JPEG": encode(RED, (70, 70), ".jpg"),
    "ILSVRC2012_val_00000002.JPEG": encode(BLUE, (70, 99), ".jpg"),
}


def class_tars(folder: Path, front: str = "", within: str = "") -> dict[str, bytes]:
    """A tar file for each class, with what stands in front of its name and of those within."""
    tars = {}
    for path, content in TRAIN.items():
        wnid, name = path.split("/")
        tar(folder / "inner.tar", {within + name: content})
        tars[f"{front}{wnid}.tar"] = (folder / "inner.tar").read_bytes()
    (folder / "inner.tar").unlink()
    return tars


def write_imagenet(folder: Path, train_tar: bool, validation: str) -> None:
    """Write both splits; `validation` is `tar`, `flat` or `classes`."""
    if train_tar:
        tar(folder / "ILSVRC2012_img_train.tar", class_tars(folder))
    else:
        write_folder(folder / "train", TRAIN)
    if validation == "tar":
        tar(folder / "ILSVRC2012_img_val.tar", VALIDATION)
    elif validation == "flat":
        write_folder(folder / "val", VALIDATION)
    else:
        labelled = zip(WNIDS, VALIDATION.items(), strict=True)
        write_folder(folder / "val", {f"{wnid}/{n}": content for wnid, (n, content) in labelled})


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write `files`, with the folders in their names."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def pillow(kind: str) -> bytes:
    """A red image of 60×90, or a grey one, as a file of some kind."""
    file = io.BytesIO()
    image = Image.new("RGB", (90, 60), RED)
    if kind == "photograph":
        noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
        Image.fromarray(noise).save(file, "JPEG", quality=95)
    elif kind == "exif":
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


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said while preparing."""
    return [record.message for record in caplog.records if record.name == "root"]
