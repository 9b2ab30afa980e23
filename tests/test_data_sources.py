"""Data sets by name, and the order in which they are looked for."""

import functools
import http.server
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl_jax import data
from tcl_jax.data import prepare, sources
from tcl_jax.errors import InputError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "reachable", lambda url: False)


def _write_idx(folder: Path, images: int = 6) -> None:
    folder.mkdir(exist_ok=True)
    for prefix in ("train", "t10k"):
        pixels = np.arange(images * 28 * 28, dtype=np.uint32).astype(np.uint8)
        content = struct.pack(">HBB3I", 0, 8, 3, images, 28, 28) + pixels.tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(content)
        content = struct.pack(">HBBI", 0, 8, 1, images) + bytes(range(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(content)


def _load_and_count(data_dir: Path, raw_dir: Path | None = None) -> int:
    return data.load("fashion_mnist", data_dir=data_dir, raw_dir=raw_dir).info.num_train


def test_names_are_loadable_names() -> None:
    assert tuple(data.DATASETS) == (
        "digits",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "imagenet2012",
    )


def test_digits_are_the_published_ones() -> None:
    from sklearn.datasets import load_digits

    published: Any = load_digits()
    dataset = data.load("digits")
    assert isinstance(dataset.train, data.ArraySource)
    assert isinstance(dataset.test, data.ArraySource)
    assert dataset.info.image_shape == (8, 8, 1)
    assert (dataset.info.num_train, dataset.info.num_test) == (1438, 359)
    shares = np.bincount(dataset.test.labels) / np.bincount(published.target)
    assert np.abs(shares - 0.2).max() < 0.005

    def known(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
        rows = zip(images.reshape(-1, 64), labels, strict=True)
        return sorted(row.tobytes() + bytes([label]) for row, label in rows)

    images = np.concatenate([dataset.train.images, dataset.test.images])
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    expected = np.round(published.data / 16 * 255).astype(np.uint8)
    assert known(images, labels) == known(expected, published.target)
    assert images.max() == 255


def test_digits_are_split_the_same_way_every_time() -> None:
    first, second = data.load("digits"), data.load("digits")
    assert isinstance(first.test, data.ArraySource) and isinstance(second.test, data.ArraySource)
    np.testing.assert_array_equal(first.test.images, second.test.images)


def test_stated_statistics_are_those_of_the_pixels() -> None:
    dataset = data.load("digits")
    assert isinstance(dataset.train, data.ArraySource)
    pixels = dataset.train.images / 255
    assert dataset.info.mean == (pytest.approx(pixels.mean(), abs=1e-4),)
    assert dataset.info.std == (pytest.approx(pixels.std(), abs=1e-4),)


@pytest.mark.parametrize("side", [8, 9, 12])
def test_padding_is_centred_and_zero(side: int) -> None:
    plain, padded = data.load("digits"), data.load("digits", pad_to=side)
    assert padded.info.image_shape == (side, side, 1)
    start = (side - 8) // 2
    for index in (0, 100):
        expected = np.zeros((side, side, 1), np.uint8)
        expected[start : start + 8, start : start + 8] = plain.train[index]["image"]
        np.testing.assert_array_equal(padded.train[index]["image"], expected)
        assert padded.test[index]["label"] == plain.test[index]["label"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fashion-mnist", {}, "unknown data set .*: did you mean 'fashion_mnist'"),
        ("zzz", {}, "choose from digits"),
        ("digits", {"pad_to": 7}, "pad_to=7 is smaller"),
        ("digits", {"image_size": 32}, "give pad_to instead"),
        ("imagenet2012", {"pad_to": 256}, "give image_size instead"),
        ("cifar10", {"data_dir": "gs://bucket/data"}, "mount the bucket"),
        ("cifar10", {"raw_dir": "/nonexistent/raw"}, "/nonexistent/raw does not exist"),
    ],
)
def test_unusable_arguments_are_refused(
    tmp_path: Path, name: str, options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        data.load(name, **{"data_dir": tmp_path, **options})  # pyright: ignore


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet2012"])
def test_missing_data_says_what_was_looked_for(tmp_path: Path, name: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        data.load(name, data_dir=tmp_path / "prepared", raw_dir=raw)
    assert time.monotonic() - start < 5
    message = str(error.value)
    files = "ILSVRC2012_img_val.tar" if name == "imagenet2012" else "-python.tar.gz"
    for part in (str(tmp_path / "prepared" / name), str(raw), files, "raw_dir", "data_dir"):
        assert part in message
    assert ("without registration" if name == "imagenet2012" else "does not answer") in message
    assert "\n" not in message


def test_the_environment_names_the_data_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "from_environment"))
    with pytest.raises(InputError, match="from_environment"):
        data.load("cifar10")


def test_prepared_data_comes_before_raw_files(tmp_path: Path) -> None:
    _write_idx(tmp_path / "raw", images=6)
    assert _load_and_count(tmp_path, tmp_path / "raw") == 6
    _write_idx(tmp_path / "raw", images=7)
    assert _load_and_count(tmp_path, tmp_path / "raw") == 6
    assert _load_and_count(tmp_path / "elsewhere", tmp_path / "raw") == 7


def test_a_system_package_comes_after_raw_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_idx(tmp_path / "system", images=4)
    _write_idx(tmp_path / "raw", images=5)
    spec = sources.DATASETS["fashion_mnist"]
    assert spec.files is not None
    files = replace(spec.files, system_folder=tmp_path / "system")
    monkeypatch.setitem(sources.DATASETS, "fashion_mnist", replace(spec, files=files))
    assert _load_and_count(tmp_path / "a") == 4
    assert _load_and_count(tmp_path / "b", tmp_path / "raw") == 5


def test_what_an_interrupted_preparation_left_is_ignored(tmp_path: Path) -> None:
    _write_idx(tmp_path / "raw")
    left = tmp_path / "fashion_mnist" / "incomplete.AB12CD_3.0.1"
    left.mkdir(parents=True)
    (left / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    assert _load_and_count(tmp_path, tmp_path / "raw") == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [('{"fileFormat": "tfrecord"}', "not prepared as ArrayRecord"), ("{", "cannot be read")],
)
def test_unreadable_prepared_data_is_named(tmp_path: Path, content: str, said: str) -> None:
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(content)
    with pytest.raises(InputError, match=said) as error:
        data.load("cifar10", data_dir=tmp_path)
    assert str(folder) in str(error.value)


def test_a_race_for_the_prepared_folder_is_no_error(tmp_path: Path) -> None:
    _write_idx(tmp_path / "raw")
    spec = sources.DATASETS["fashion_mnist"]
    assert spec.files is not None
    found = spec.files.find(tmp_path / "raw")

    def read_while_another_prepares(_: object) -> prepare.RawData:
        assert spec.files is not None
        assert _load_and_count(tmp_path, tmp_path / "raw") == 6
        return spec.files.read(found)

    prepare.prepare("fashion_mnist", tmp_path, read_while_another_prepares)
    assert _load_and_count(tmp_path) == 6


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    _write_idx(tmp_path / "raw")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be prepared") as error:
        _load_and_count(tmp_path / "file", tmp_path / "raw")
    assert str(tmp_path / "file") in str(error.value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server on this machine for the files in `tmp_path / "served"`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture
def _served(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "reachable", prepare.reachable)
    names = [f"{p}-{k}-ubyte" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
    urls = {name: f"{server}/{name}" for name in names}
    monkeypatch.setattr(sources, "official_urls", lambda name: urls)
    spec = sources.DATASETS["fashion_mnist"]
    assert spec.files is not None
    files = replace(spec.files, system_folder=None)
    monkeypatch.setitem(sources.DATASETS, "fashion_mnist", replace(spec, files=files))


@pytest.mark.usefixtures("_served")
def test_missing_data_is_downloaded(tmp_path: Path) -> None:
    _write_idx(tmp_path / "served")
    assert _load_and_count(tmp_path / "prepared") == 6


@pytest.mark.usefixtures("_served")
def test_a_failed_download_is_named(tmp_path: Path) -> None:
    _write_idx(tmp_path / "served")
    (tmp_path / "served" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="fashion_mnist cannot be prepared"):
        _load_and_count(tmp_path / "prepared")


def test_a_server_that_does_not_answer_is_noticed_at_once(server: str) -> None:
    assert prepare.reachable(server)
    start = time.monotonic()
    assert not prepare.reachable("http://127.0.0.1:1/file")
    assert time.monotonic() - start < 1


def test_official_urls_are_those_of_tfds() -> None:
    assert set(sources.official_urls("cifar10")) == {"cifar-10-binary.tar.gz"}
    assert len(sources.official_urls("fashion_mnist")) == 4


@pytest.mark.long
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the package dataset-fashion-mnist is missing")
def test_the_packaged_fashion_mnist(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = data.load("fashion_mnist", data_dir=tmp_path, pad_to=32)
    assert "not the official" not in caplog.text
    info = dataset.info
    assert (info.num_train, info.num_test, info.image_shape) == (60_000, 10_000, (32, 32, 1))
    for source in (dataset.train, dataset.test):
        assert isinstance(source, data.ArraySource)
        assert set(np.bincount(source.labels)) == {len(source) // 10}
    assert isinstance(dataset.train, data.ArraySource)
    pixels = dataset.train.images[:, 2:30, 2:30] / 255
    assert info.mean == (pytest.approx(pixels.mean(), abs=1e-4),)
    assert info.std == (pytest.approx(pixels.std(), abs=1e-4),)
