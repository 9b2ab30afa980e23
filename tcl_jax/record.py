"""Files that are there whole, or as they were before, and checksums that tell."""

import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np


def free(path: Path) -> Path:
    """This path, or the first of PATH-2, PATH-3 and so on that nothing has."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in count(2))
    return path if not path.exists() else next(p for p in numbered if not p.exists())


def remove(folder: Path) -> None:
    """Remove a folder, though threads of a writer that failed may be at work in it yet."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


@contextmanager
def whole(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    r"""A file to write to, for ``with``, that takes its name only once all is written.

    Whatever ends the process, and however full the disk is, what was there before stays until then.

    Args:
        path: the file.
        mode: ``"w"`` for text, ``"wb"`` for bytes.

    Raises:
        OSError: the system refuses it; names the file.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from tcl_jax.record import whole
    >>> path = Path(tempfile.mkdtemp()) / "figures.csv"
    >>> with whole(path) as file:
    ...     _ = file.write("T,accuracy\n")
    >>> path.read_text()
    'T,accuracy\n'
    """
    new = path.with_name(f".{path.name}.new")
    try:
        text: dict[str, Any] = {} if "b" in mode else {"newline": "", "encoding": "utf-8"}
        with new.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        new.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write a `whole` file of JSON, for people to read as well."""
    with whole(path) as file:
        file.write(json.dumps(content, indent=indent) + "\n")


def crc32(content: Any) -> int:
    """CRC-32 of bytes, of an array's bytes, or of what JSON can say, however that is laid out.

    >>> crc32({"a": 1, "b": 2.5}) == crc32({"b": 2.5, "a": 1})
    True
    >>> crc32(np.float32(1.0)) == crc32(np.float32(-1.0))
    False
    """
    if isinstance(content, np.ndarray | np.generic):
        content = content.tobytes()  # in C order, whatever its own
    elif not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True).encode()
    return zlib.crc32(content)
