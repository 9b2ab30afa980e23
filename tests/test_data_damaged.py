"""Raw files of ImageNet that cannot be used, or perhaps should not be, are named."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imagenet_files import (
    TRAIN,
    VALIDATION,
    WNIDS,
    pillow,
    warnings_of,
    write_folder,
    write_imagenet,
)

from tcl_jax import data
from tcl_jax.data import imagenet, sources
from tcl_jax.errors import InputError


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "reachable", lambda url: False)


def test_what_may_be_damaged_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """libjpeg decodes them, and cannot tell which of them are as they should be."""
    write_imagenet(tmp_path, train_tar=False, validation="flat")
    overwritten = bytearray(pillow("photograph"))
    middle = len(overwritten) // 2
    overwritten[middle : middle + 20] = bytes(20)
    name, in_val = f"{WNIDS[0]}/{WNIDS[0]}_5.JPEG", "ILSVRC2012_val_00000003.JPEG"
    write_folder(tmp_path / "train", {name: bytes(overwritten)})
    write_folder(tmp_path / "val", {in_val: pillow("junk before the end marker")})
    dataset = data.load("imagenet2012", data_dir=tmp_path / "p", raw_dir=tmp_path, image_size=32)
    assert (len(dataset.train), len(dataset.test)) == (3, 3)
    assert warnings_of(caplog)[-1] == (
        f"{tmp_path}: images with wrong or superfluous bytes, which may be damaged (2): "
        f"train/{name}, val/{in_val}"
    )


def test_links_in_tar_files_are_named(tmp_path: Path) -> None:
    write_imagenet(tmp_path, train_tar=False, validation="flat")
    shutil.rmtree(tmp_path / "train")
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name, content in TRAIN.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            member = tarfile.TarInfo(f"./{WNIDS[0]}/link{kind.decode()}.JPEG")
            member.type, member.linkname = kind, f"./{next(iter(TRAIN))}"
            archive.addfile(member)
    with pytest.raises(InputError) as error:
        data.load("imagenet2012", data_dir=tmp_path / "p", raw_dir=tmp_path)
    links = ", ".join(f"train.tar/{WNIDS[0]}/link{kind}.JPEG" for kind in (1, 2))
    assert f"(unreadable, truncated or damaged: {links})" in str(error.value)


def test_all_that_cannot_be_used_is_named_at_once(tmp_path: Path) -> None:
    write_imagenet(tmp_path, train_tar=False, validation="flat")
    whole = TRAIN[f"{WNIDS[0]}/{WNIDS[0]}_1.JPEG"]
    write_folder(
        tmp_path / "train",
        {
            f"{WNIDS[0]}/cut.JPEG": whole[: len(whole) // 2],
            f"{WNIDS[0]}/no end.JPEG": whole[:-2],
            f"{WNIDS[1]}/page.jpg": b"<html>",
            f"{WNIDS[1]}/empty.jpg": b"",
            f"{WNIDS[1]}/cut.png": pillow("PNG")[:-100],
            f"{WNIDS[1]}/{WNIDS[0]}_1.JPEG": whole,
            "cats/1.JPEG": whole,
            "cats/2.JPEG": whole,
            "dogs/1.JPEG": whole,
            "loose.JPEG": whole,
            "ILSVRC2012_val_00000003.JPEG": whole,
        },
    )
    write_folder(
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
        if not path.is_dir() and inside not in TRAIN and inside not in VALIDATION:
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
        (lambda root: write_folder(root / "train/cats", {"a.JPEG": b""}), "not an ImageNet class"),
        (lambda root: next(root.glob("train/*/*")).write_bytes(b"<html>"), "damaged"),
        (lambda root: (root / "val").rename(root / "valid"), "also needs .*val.tar or val/"),
        (lambda root: [path.unlink() for path in root.glob("val/*")], "holds no images"),
    ],
    ids=["name", "number", "class", "html", "no-val", "empty"],
)
def test_damaged_imagenet_folders_are_named(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    write_imagenet(tmp_path, train_tar=False, validation="flat")
    damage(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        data.load("imagenet2012", data_dir=tmp_path / "prepared", raw_dir=tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("keep", [700, -1100])
def test_truncated_imagenet_tar_is_named(tmp_path: Path, keep: int) -> None:
    write_imagenet(tmp_path, train_tar=True, validation="tar")
    tar = tmp_path / "ILSVRC2012_img_train.tar"
    content = tar.read_bytes().rstrip(b"\0")
    tar.write_bytes(content[:keep])
    with pytest.raises(InputError, match="not a whole tar file") as error:
        data.load("imagenet2012", data_dir=tmp_path / "prepared", raw_dir=tmp_path)
    assert str(tar) in str(error.value)


@pytest.mark.parametrize(
    ("augment", "workers"), [("none", 0), ("resized_crop_flip", 0), ("resized_crop_flip", 1)]
)
def test_a_photograph_damaged_once_it_was_prepared_is_named(
    tmp_path: Path, augment: Any, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_imagenet(tmp_path, train_tar=False, validation="flat")
    path = tmp_path / "train" / WNIDS[1] / f"{WNIDS[1]}_7.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    # As an older version, or TFDS itself, prepared it.
    monkeypatch.setattr(imagenet, "_as_rgb_jpeg", lambda name, content: (content, False))
    dataset = data.load("imagenet2012", data_dir=tmp_path, raw_dir=tmp_path, image_size=32)
    with pytest.raises(InputError, match=f"{path.name}.*truncated.*names damaged raw files"):
        next(data.train_batches(dataset, batch_size=2, seed=0, augment=augment, workers=workers))
