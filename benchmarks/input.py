"""How fast photographs become batches: `python -m benchmarks.input` writes results/input.

JPEG files made of two photographs that scikit-learn brings with it, in sizes like ImageNet's. First
on one core, image by image: seconds of its processor (user and system), least of several rounds
in which the decoders take turns. Then `data.train_batches` on all cores, by worker processes, and
on a GPU or TPU a training that it feeds, beside one whose images lie on the device. --only PART
measures one part again; the pages are written from the records of all machines.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

from results.pages import table
from tcl_jax import cluster, data, models, provenance
from tcl_jax.data import jpeg
from tcl_jax.data.augment import Rectangle, draw_resized_crops
from tcl_jax.record import write_json
from tcl_jax.training import config, optimizer, step

RESULTS = Path(__file__).resolve().parent.parent / "results" / "input"
SIDE = 224
# Of twenty photographs.
MIXTURE = {(375, 500): 12, (500, 375): 4, (333, 500): 2, (213, 320): 1, (768, 1024): 1}
LARGE = {(1200, 1600): 1}
QUALITY, PREPARED, ROUNDS = 95, 2000, 5
BATCH, SECONDS = 256, 8.0
# Batches that were made while the step was compiled are used up in the first steps.
NETWORK, FIRST_STEPS, STEPS = "resnet50", 100, 150
WNID = "n01440764"  # one of ImageNet's classes

_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# OpenCV's names for this are of grey images, or of BGR.
_REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"decoders": _decoders, "batches": _batches, "training": _training}
    parser.add_argument("--only", choices=parts, metavar="PART", help=", ".join(parts))
    parser.add_argument("--report-only", action="store_true", help="write the page again")
    options = parser.parse_args()
    if not options.report_only:
        about = provenance.describe()
        hardware = about["hardware"]
        path = RESULTS / f"{hardware['backend']}-{hardware['host_cores']}.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if options.only:
            parts = {options.only: parts[options.only]}
        elif hardware["backend"] == "cpu":
            del parts["training"]
        for name, measure in parts.items():
            print(f"{name} …", flush=True)
            found: dict[str, Any] = {}
            record[name] = {**about, "seed": 0, "found": found}
            for what, figures in measure():
                print(f"{what}: {figures}", flush=True)
                found[what] = figures
                write_json(path, record)
    _write([json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("*.json"))])
    return 0


def _photographs(count: int, sizes: dict[tuple[int, int], int]) -> list[bytes]:
    """Pieces of two photographs, encoded, in these sizes as often as said."""
    rng = np.random.default_rng(0)
    originals = load_sample_images().images
    every = [size for size, times in sizes.items() for _ in range(times)]
    encoded = []
    for number in range(count):
        height, width = every[number % len(every)]
        original = originals[number % 2]
        part = rng.uniform(0.7, 1)
        cut = [int(part * side) for side in original.shape[:2]]
        top, left = (
            rng.integers(0, of - to + 1) for of, to in zip(original.shape, cut, strict=False)
        )
        piece = original[top : top + cut[0], left : left + cut[1], ::-1]
        piece = cv2.resize(piece, (width, height), interpolation=cv2.INTER_CUBIC)
        encoded.append(
            cv2.imencode(".jpg", piece, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes()
        )
    return encoded


Part = Callable[[int, int], Rectangle]


def _pillow(encoded: bytes) -> Any:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def _opencv(encoded: bytes, flags: int = _RGB) -> Any:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)


def _pillow_part(encoded: bytes, part: Part) -> Any:
    image = _pillow(encoded)
    top, left, height, width = part(image.height, image.width)
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box))


def _opencv_part(encoded: bytes, part: Part, method: int) -> Any:
    image = _opencv(encoded)
    cut = part(*image.shape[:2]).of(image)
    return cv2.resize(cut, (SIDE, SIDE), interpolation=method)


def _opencv_scaled(encoded: bytes, part: Part) -> Any:
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)  # OpenCV has none of its own
    cut = part(height, width)
    by = max((n for n in _REDUCED if min(cut.height, cut.width) >= n * SIDE), default=1)
    flags = _RGB if by == 1 else _REDUCED[by] | _RGB
    image = _opencv(encoded, flags)
    cut = cut.scaled((height, width), image.shape[:2])
    return cv2.resize(cut.of(image), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def _simplejpeg_part(encoded: bytes, part: Part) -> Any:
    image = simplejpeg.decode_jpeg(encoded)
    cut = part(*image.shape[:2]).of(image)
    return cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


DECODERS: dict[str, Callable[[bytes, Part], Any]] = {
    "Pillow, decode alone": lambda encoded, part: _pillow(encoded),
    "OpenCV, decode alone": lambda encoded, part: _opencv(encoded),
    "simplejpeg, decode alone": lambda encoded, part: simplejpeg.decode_jpeg(encoded),
    "Pillow, bilinear with antialiasing": _pillow_part,
    "OpenCV, averages over areas": partial(_opencv_part, method=cv2.INTER_AREA),
    "OpenCV, bilinear": partial(_opencv_part, method=cv2.INTER_LINEAR),
    "OpenCV, scaled, bilinear": _opencv_scaled,
    "simplejpeg, bilinear": _simplejpeg_part,
    "simplejpeg, scaled, bilinear (ours)": partial(jpeg.decode_part, size=SIDE),
}


def _decoders() -> Iterator[tuple[str, Any]]:
    """Images a second on one core, by set of photographs and decoder."""
    cv2.setNumThreads(1)
    for name, sizes, count in (("mixture", MIXTURE, 200), ("1600×1200", LARGE, 20)):
        encoded = _photographs(count, sizes)
        crops = draw_resized_crops(np.random.default_rng(0), count)
        least = dict.fromkeys(DECODERS, float("inf"))
        for _ in range(ROUNDS):
            for method, decode in DECODERS.items():
                started = time.process_time()
                for row, file in enumerate(encoded):
                    decode(file, partial(crops.rectangle, row))
                least[method] = min(least[method], time.process_time() - started)
        yield name, {method: count / seconds for method, seconds in least.items()}
        yield f"{name}, kB", sum(map(len, encoded)) / count / 1000


def _prepared(folder: Path) -> data.Dataset:
    """As `train.py` would have it."""
    raw, encoded = folder / "raw", _photographs(PREPARED, MIXTURE)
    for split, files in (("train", encoded), ("val", encoded[:1])):
        (raw / split / WNID).mkdir(parents=True)
        for number, file in enumerate(files):
            (raw / split / WNID / f"{number}.JPEG").write_bytes(file)
    return data.load("imagenet2012", data_dir=folder / "prepared", raw_dir=raw)


def _batches() -> Iterator[tuple[str, float]]:
    """Images a second of `train_batches`, by worker processes; 0 is threads alone."""
    cores = provenance.describe()["hardware"]["host_cores"]
    with tempfile.TemporaryDirectory() as folder:
        dataset = _prepared(Path(folder))
        for workers in (0, *(n for n in (1, 2, 4, 8, 16, 32, 64) if n <= cores)):
            with closing(_stream(dataset, workers)) as batches:
                for _ in range(2 * cores + 4):  # what was made before it was asked for
                    next(batches)
                started, count = time.perf_counter(), 0
                while time.perf_counter() - started < SECONDS:
                    next(batches)
                    count += 1
                rate = BATCH * count / (time.perf_counter() - started)
            yield str(workers), rate


def _stream(dataset: data.Dataset, workers: int) -> Any:
    return data.train_batches(
        dataset, batch_size=BATCH, seed=0, augment="resized_crop_flip", workers=workers
    )


def _training() -> Iterator[tuple[str, float]]:
    """Images a second of a training, by where they come from."""
    devices = cluster.everywhere()
    with tempfile.TemporaryDirectory() as folder:
        dataset = _prepared(Path(folder))
        info = dataset.info
        model = models.create(
            NETWORK, image_shape=info.image_shape, num_classes=1000, dtype=jnp.bfloat16
        )
        tx = optimizer.make(config.OptimConfig(), total_steps=10_000, batch_size=BATCH)
        train_step = step.make_train_step(model, tx, info)
        for workers in (None, 0, 4, 8):
            with closing(_stream(dataset, workers or 0)) as batches:
                state = devices.replicate(step.init_state(model, tx, info, 0))
                batch = devices.put(next(batches))
                for number in range(FIRST_STEPS + STEPS):
                    if number == FIRST_STEPS:
                        jax.block_until_ready(state)
                        started = time.perf_counter()
                    if workers is not None:
                        batch = devices.put(next(batches))
                    state, metrics = train_step(state, batch)
                jax.block_until_ready((state, metrics))
                rate = STEPS * BATCH / (time.perf_counter() - started)
            yield "on the device" if workers is None else f"{workers} workers", rate


def _write(records: list[dict[str, Any]]) -> None:
    lines = [
        "# From JPEG files to batches",
        "",
        "Written by `python -m benchmarks.input`, which says how each figure is measured: files",
        "made of two photographs, in sizes like ImageNet's, of which 224×224 pixels are cut and",
        "resized at random. The seed is 0 everywhere.",
    ]
    pages = {"decoders": _decoders_page, "batches": _batches_page, "training": _training_page}
    for record in records:
        lines += ["", f"## {provenance.machine(next(iter(record.values())))}"]
        for part, found in record.items():
            lines += ["", *pages[part](found["found"]), "", _by(found)]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _by(part: dict[str, Any]) -> str:
    return f"By `{part['command']}` at commit {provenance.short(part['commit'])}."


def _decoders_page(rates: dict[str, Any]) -> list[str]:
    sets = [name for name in rates if not name.endswith("kB")]
    rows = [(method, *(f"{rates[name][method]:.0f}" for name in sets)) for method in DECODERS]
    sizes = ", ".join(f"{name}: {rates[f'{name}, kB']:.0f} kB" for name in sets)
    return [
        "Images a second on one core, by what decodes, cuts and resizes a file",
        f"(on average, {sizes}):",
        "",
        *table(("decoder, then crop and resize", *sets), rows),
    ]


def _batches_page(rates: dict[str, float]) -> list[str]:
    rows = [(workers, f"{rate:.0f}") for workers, rate in rates.items()]
    return [
        f"Images a second of `data.train_batches` in batches of {BATCH}, records read, decoded,",
        "cut, mirrored and stacked, on all cores, by `--data.workers` (0: threads alone):",
        "",
        *table(("workers", "images/s"), rows),
    ]


def _training_page(rates: dict[str, float]) -> list[str]:
    rows = [(where, f"{rate:.0f}") for where, rate in rates.items()]
    return [
        f"Images a second of a training of {NETWORK} in bfloat16, {BATCH} images of 224×224 a",
        "step, by where they come from:",
        "",
        *table(("images", "images/s"), rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
