"""Fashion-MNIST and CIFAR from files written here in their official layouts."""

import gzip
import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from imagenet_files import tar

from tcl_jax import data
from tcl_jax.data import sources
from tcl_jax.errors import InputError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "reachable", lambda url: False)


def _by_label(source: data.Source) -> dict[int, np.ndarray]:
    """Images by label, for splits that hold each label once."""
    elements = [source[index] for index in range(len(source))]
    assert len({element["label"] for element in elements}) == len(elements)
    return {element["label"]: element["image"] for element in elements}


# --- Fashion-MNIST --------------------------------------------------------------------------


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _write_idx(folder: Path, pack: Callable[[bytes], bytes] = gzip.compress) -> np.ndarray:
    """Ten training and five test images, image i of a split with label i."""
    images = np.random.default_rng(1).integers(0, 256, (15, 28, 28), np.uint8)
    labels = np.arange(15, dtype=np.uint8) % 10
    suffix = "" if pack is bytes else ".gz"
    for prefix, part in (("train", slice(10)), ("t10k", slice(10, 15))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            (folder / f"{prefix}-{kind}-ubyte{suffix}").write_bytes(pack(_idx(array)))
    return images


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["gz", "plain"])
def test_fashion_mnist_is_read_from_idx(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    images = _write_idx(tmp_path, pack)
    dataset = data.load("fashion_mnist", data_dir=tmp_path / "prepared", raw_dir=tmp_path)
    assert (dataset.info.num_train, dataset.info.num_test) == (10, 5)
    assert dataset.info.image_shape == (28, 28, 1)
    train, test = _by_label(dataset.train), _by_label(dataset.test)
    assert sorted(train) == list(range(10)) and sorted(test) == list(range(5))
    for label in range(10):
        np.testing.assert_array_equal(train[label][:, :, 0], images[label])
    for label in range(5):
        np.testing.assert_array_equal(test[label][:, :, 0], images[10 + label])


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "pack", "said"),
    [
        (_truncate, gzip.compress, "not a whole gzip file"),
        (_flip_byte, gzip.compress, "not a whole gzip file"),
        (_truncate, bytes, "announces 7856 bytes and it has 7853"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), bytes, "not an IDX file"),
        (lambda path: path.write_bytes(b"\0\0\x08\x03\0\0"), bytes, "truncated"),
        (lambda path: path.write_bytes(_idx(np.zeros((10, 8, 8), np.uint8))), bytes, "shape"),
        (lambda path: path.write_bytes(_idx(np.zeros((9, 28, 28), np.uint8))), bytes, "labels"),
        (Path.unlink, bytes, "train-images-idx3-ubyte"),
    ],
    ids=["gz-cut", "gz-flip", "cut", "html", "header", "size", "count", "gone"],
)
def test_damaged_idx_is_named(
    tmp_path: Path, damage: Callable[[Path], object], pack: Callable[[bytes], bytes], said: str
) -> None:
    _write_idx(tmp_path, pack)
    damage(tmp_path / f"train-images-idx3-ubyte{'' if pack is bytes else '.gz'}")
    with pytest.raises(InputError, match=said) as error:
        data.load("fashion_mnist", data_dir=tmp_path / "prepared", raw_dir=tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "prepared").glob("*/*/dataset_info.json"))


def test_idx_label_out_of_range_is_refused(tmp_path: Path) -> None:
    _write_idx(tmp_path, bytes)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.full(5, 10, np.uint8)))
    with pytest.raises(InputError, match="label 10"):
        data.load("fashion_mnist", data_dir=tmp_path / "prepared", raw_dir=tmp_path)


# --- CIFAR ----------------------------------------------------------------------------------


_PICKLER: Any = pickle._Pickler  # pyright: ignore  (the one written in Python)


class _Python2Pickler(_PICKLER):
    """Writes byte strings as Python 2 did: so were the official files pickled."""

    dispatch: ClassVar[dict[Any, Any]] = dict(_PICKLER.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def _python2(value: object) -> bytes:
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def _cifar_files(name: str, form: str, images: np.ndarray) -> dict[str, bytes]:
    """The files of one form: image i has label i (and coarse label i // 5)."""
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    labels = np.arange(len(images))
    fine_names, coarse_names = ([f"c{i}".encode() for i in range(n)] for n in (100, 20))
    if name == "cifar10":
        batches = np.array_split(labels, 6)
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        if form == "python":
            return {
                **{
                    n: _python2(
                        {b"data": pixels[b], b"labels": b.tolist(), b"batch_label": n.encode()}
                    )
                    for n, b in zip(names, batches, strict=True)
                },
                "batches.meta": _python2({b"label_names": fine_names[:10]}),
            }
        records = np.column_stack([labels, pixels]).astype(np.uint8)
        return {
            **{f"{n}.bin": records[b].tobytes() for n, b in zip(names, batches, strict=True)},
            "batches.meta.txt": b"\n".join(fine_names[:10]) + b"\n\n",
        }
    batches = np.array_split(labels, 2)
    if form == "python":
        return {
            **{
                n: _python2(
                    {
                        b"data": pixels[b],
                        b"fine_labels": b.tolist(),
                        b"coarse_labels": (b // 5).tolist(),
                    }
                )
                for n, b in zip(("train", "test"), batches, strict=True)
            },
            "meta": _python2(
                {b"fine_label_names": fine_names, b"coarse_label_names": coarse_names}
            ),
        }
    records = np.column_stack([labels // 5, labels, pixels]).astype(np.uint8)
    return {
        **{
            f"{n}.bin": records[b].tobytes()
            for n, b in zip(("train", "test"), batches, strict=True)
        },
        "fine_label_names.txt": b"\n".join(fine_names) + b"\n",
        "coarse_label_names.txt": b"\n".join(coarse_names) + b"\n",
    }


CIFAR_FORMS = {
    ("cifar10", "python"): ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    ("cifar10", "binary"): ("cifar-10-binary.tar.gz", "cifar-10-batches-bin"),
    ("cifar100", "python"): ("cifar-100-python.tar.gz", "cifar-100-python"),
    ("cifar100", "binary"): ("cifar-100-binary.tar.gz", "cifar-100-binary"),
}


def _write_cifar(folder: Path, name: str, form: str, packed: bool) -> np.ndarray:
    count = 10 if name == "cifar10" else 20
    images = np.random.default_rng(2).integers(0, 256, (count, 32, 32, 3), np.uint8)
    archive, inner = CIFAR_FORMS[name, form]
    files = _cifar_files(name, form, images)
    if packed:
        tar(folder / archive, {f"{inner}/{n}": content for n, content in files.items()}, "w:gz")
    else:
        (folder / inner).mkdir()
        for file, content in files.items():
            (folder / inner / file).write_bytes(content)
    return images


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
@pytest.mark.parametrize(("name", "form"), CIFAR_FORMS)
def test_cifar_is_read_in_every_form(tmp_path: Path, name: str, form: str, packed: bool) -> None:
    images = _write_cifar(tmp_path, name, form, packed)
    dataset = data.load(name, data_dir=tmp_path / "prepared", raw_dir=tmp_path)
    assert dataset.info.image_shape == (32, 32, 3)
    train, test = _by_label(dataset.train), _by_label(dataset.test)
    assert len(train) > 0 and len(test) > 0
    assert sorted((*train, *test)) == list(range(len(images)))
    assert max(train) < min(test)  # the splits are not mixed up
    for label, image in (train | test).items():
        np.testing.assert_array_equal(image, images[label])


def test_cifar_forms_are_prepared_in_the_same_order(tmp_path: Path) -> None:
    loaded = []
    for form in ("python", "binary"):
        (tmp_path / form).mkdir()
        _write_cifar(tmp_path / form, "cifar100", form, packed=True)
        dataset = data.load("cifar100", data_dir=tmp_path / form, raw_dir=tmp_path / form)
        loaded.append([dataset.train[i]["label"] for i in range(len(dataset.train))])
    assert loaded[0] == loaded[1]


def test_the_unpacked_folder_itself_may_be_given(tmp_path: Path) -> None:
    _write_cifar(tmp_path, "cifar10", "binary", packed=False)
    inner = tmp_path / "cifar-10-batches-bin"
    dataset = data.load("cifar10", data_dir=tmp_path / "prepared", raw_dir=inner)
    assert dataset.info.num_train + dataset.info.num_test == 10


def test_class_names_are_kept(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    _write_cifar(tmp_path, "cifar10", "python", packed=True)
    data.load("cifar10", data_dir=tmp_path, raw_dir=tmp_path)
    (folder,) = (tmp_path / "cifar10").iterdir()
    features: Any = tfds.builder_from_directory(folder).info.features
    assert features["label"].names[:2] == ["c0", "c1"]


@pytest.mark.parametrize("form", ["python", "binary"])
def test_truncated_cifar_archive_is_named(tmp_path: Path, form: str) -> None:
    _write_cifar(tmp_path, "cifar10", form, packed=True)
    archive = tmp_path / CIFAR_FORMS["cifar10", form][0]
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a whole archive") as error:
        data.load("cifar10", data_dir=tmp_path, raw_dir=tmp_path)
    assert str(archive) in str(error.value)


@pytest.mark.parametrize(
    ("form", "file", "content", "said"),
    [
        ("binary", "test.bin", b"\0" * 3000, "not a whole number of records"),
        ("binary", "test.bin", b"\x00\xc8" + b"\0" * 3072, "label outside 0 to 99"),
        ("python", "test", b"\x80\x02}q", "cannot be unpickled"),
        ("python", "test", _python2([1]), "dictionary"),
        ("python", "test", _python2({b"data": 3}), "images and labels"),
        ("python", "meta", _python2({}), "class names"),
        ("python", "meta", None, "lacks meta"),
    ],
)
def test_damaged_cifar_files_are_named(
    tmp_path: Path, form: str, file: str, content: bytes | None, said: str
) -> None:
    _write_cifar(tmp_path, "cifar100", form, packed=False)
    path = tmp_path / CIFAR_FORMS["cifar100", form][1] / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        data.load("cifar100", data_dir=tmp_path, raw_dir=tmp_path)
    assert str(path.parent) in str(error.value)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    _write_cifar(tmp_path, "cifar100", "python", packed=False)
    mark = tmp_path / "mark"
    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps({b"data": _Touch(mark)}))
    with pytest.raises(InputError, match="cannot be unpickled"):
        data.load("cifar100", data_dir=tmp_path, raw_dir=tmp_path)
    assert not mark.exists()
