"""Prepared TFDS data (ArrayRecord) without TensorFlow: find it, make it, read it.

The stock builders parse and unpack with TensorFlow.  Here each is subclassed and only its
parser is replaced, so that names, features, URLs and checksums stay those of TFDS and the
prepared folder is the one that TFDS itself would have written.
"""

import json
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.proto import tf_example_pb2

from tcl_jax.errors import InputError

_PROBE_SECONDS = 5.0
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True)
class RawData:
    """Parsed raw files.

    Attributes:
        splits: For each split, pairs of (key, record): the key is the stock builder's, since it
            decides the order of the prepared data.
        class_names: For label features whose names the files bring with them, those names.
    """

    splits: Mapping[str, Iterator[tuple[int | str, dict[str, Any]]]]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def find_prepared(name: str, data_dir: Path) -> tfds.core.DatasetBuilder | None:
    """Look for prepared data.

    Args:
        name: Name of the TFDS data set.
        data_dir: Folder that holds prepared data sets.

    Returns:
        A builder of the newest version in ArrayRecord, or None if nothing is prepared.

    Raises:
        InputError: Only data in a format without random access is there.
    """
    unreadable: list[Path] = []
    descriptions = [
        path
        for path in (data_dir / name).glob("*/dataset_info.json")
        # Anything else is what an interrupted preparation left behind.
        if _VERSION.fullmatch(path.parent.name)
    ]
    for description in sorted(descriptions, key=_version, reverse=True):
        try:
            file_format = json.loads(description.read_text(encoding="utf-8")).get("fileFormat")
        except (OSError, ValueError) as error:
            raise InputError(f"{description} cannot be read ({error}).") from error
        if file_format == "array_record":
            return tfds.builder_from_directory(description.parent)
        unreadable.append(description.parent)
    if unreadable:
        raise InputError(
            f"{unreadable[0]} is not prepared as ArrayRecord, and no other format has random "
            "access: give another data_dir, where it can be prepared from the raw files."
        )
    return None


def prepare(name: str, data_dir: Path, read: Callable[[Any], RawData]) -> None:
    """Write a data set to `data_dir` in TFDS's own layout, as ArrayRecord.

    Args:
        name: Name of the TFDS data set.
        data_dir: Folder that holds prepared data sets.
        read: Gives the examples; it may download with the TFDS download manager it is given.

    Raises:
        InputError: The files cannot be fetched or parsed, or the folder cannot be written.
    """
    stock: Any = tfds.builder_cls(name)

    # Checkers do not see the keywords of a class whose base is only known when run.
    class Local(stock, skip_registration=True):  # type: ignore[call-arg,misc]
        def _split_generators(self, dl_manager: Any) -> Mapping[str, Any]:
            raw = read(dl_manager)
            features: Any = self.info.features
            for feature, class_names in raw.class_names.items():
                features[feature].names = class_names
            return raw.splits

        def _generate_examples(self) -> Iterator[tuple[int | str, dict[str, Any]]]:
            raise NotImplementedError("the splits bring their examples with them")

    Local.name = name
    Local.__module__ = stock.__module__
    try:
        Local(data_dir=data_dir, file_format="array_record").download_and_prepare()
    except (OSError, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        if find_prepared(name, data_dir) is not None:
            return  # another process was faster, and its folder stood in the way of ours
        raise InputError(f"{name} cannot be prepared in {data_dir}: {error}") from error


@dataclass(frozen=True, eq=False)
class Records:
    """Random access to the records of a split, as dictionaries whose images are left encoded.

    TFDS's own access takes twice the time, a tenth of what decoding a photograph takes.

    Attributes:
        serialized: The same, as bytes.
    """

    serialized: Any

    def __len__(self) -> int:
        return len(self.serialized)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (_parsed(self.serialized[index]) for index in range(len(self)))

    def __getitems__(self, indices: Sequence[int], /) -> list[dict[str, Any]]:
        """Those at `indices`, read together."""
        return [_parsed(record) for record in self.serialized.__getitems__(indices)]


def records(builder: Any, split: str) -> Records:
    """The records of one split.

    Args:
        builder: What `find_prepared` found.
        split: Name of the split.

    Returns:
        The records, each with one value a feature.

    Raises:
        InputError: The split is empty.
    """
    if split not in builder.info.splits or not builder.info.splits[split].num_examples:
        raise InputError(
            f"{builder.data_path} has no examples of split {split}: delete that folder to have it "
            "prepared again."
        )
    as_bytes = tfds.decode.DeserializeMethod.RAW_BYTES
    return Records(builder.as_data_source(split, deserialize_method=as_bytes))


def _parsed(record: bytes) -> dict[str, Any]:
    features = tf_example_pb2.Example.FromString(record).features.feature
    return {
        name: getattr(feature, feature.WhichOneof("kind")).value[0]
        for name, feature in features.items()
    }


def official_urls(name: str) -> Mapping[str, str]:
    """URL by file name of what the stock builder of a data set downloads."""
    stock: Any = tfds.builder_cls(name)
    return {info.filename: url for url, info in stock.url_infos.items()}


def reachable(url: str) -> bool:
    """Whether a server answers for `url` at once; TFDS itself would try for minutes."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return True
    except OSError:
        return False


def _version(description: Path) -> tuple[int, ...]:
    return tuple(map(int, description.parent.name.split(".")))
