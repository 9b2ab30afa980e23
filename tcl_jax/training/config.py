"""What a run is: frozen dataclasses, checked when made, written beside the run's results."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tcl_jax.errors import InputError
from tcl_jax.record import write_json


def _require(condition: bool, setting: str, what: str, got: Any) -> None:
    if not condition:
        raise InputError(f"must be {what}, got {got!r}", setting)


def _require_types(config: Any, section: str) -> None:
    """Dataclasses take any value; a configuration may come from a file edited by hand."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        _require(_fits(value, kind), f"{section}{name}", _in_words(kind), value)


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_fits(value, k) for k in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(kind)[0]) for v in value)
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, int | float if kind is float else kind)


def _in_words(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a name", bool: "true or false"}
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if get_origin(kind) is UnionType:
        return " or ".join(_in_words(k) for k in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of numbers"
    return words.get(kind, "none" if kind is type(None) else f"a {kind.__name__}")


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str
    """Name of the network, such as cnet or resnet20; a wrong name is answered by a list of all."""
    tcl: bool = True
    """Clip every ReLU at a trainable λ; without it, the plain network of the baselines."""
    lam: float = 4.0
    """λ of every layer before training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation type; parameters, batch statistics and λ are float32 in any case."""

    def __post_init__(self) -> None:
        _require_types(self, "model.")
        _require(0 < self.lam < math.inf, "model.lam", "finite and above 0", self.lam)


@dataclass(frozen=True)
class DataConfig:
    """The images."""

    name: str
    """digits, fashion_mnist, cifar10, cifar100 or imagenet2012."""
    augment: Literal["none", "crop_flip", "resized_crop_flip"] = "none"
    """What is done to training images at random."""
    pad_to: int | None = None
    """Pad images with zeros to this height and width."""
    image_size: int | None = None
    """Side of the square cut from ImageNet's images, 224 if none is given."""

    def __post_init__(self) -> None:
        _require_types(self, "data.")
        for name, side in (("image_size", self.image_size), ("pad_to", self.pad_to)):
            _require(side is None or side > 0, f"data.{name}", "above 0", side)


@dataclass(frozen=True)
class OptimConfig:
    """Stochastic gradient descent with momentum, its schedule, and the loss it descends."""

    lr: float = 0.1
    """Learning rate before the first milestone."""
    lr_batch: int | None = None
    """Batch size that lr is for: with another it is scaled in proportion, unless this is None."""
    warmup: float = 0.0
    """Fraction of all epochs over which the learning rate rises from 0 to its full height."""
    momentum: float = 0.9
    alpha: float = 1e-3
    """α, the L2 coefficient of λ (Eq. 11)."""
    weight_decay: float = 5e-4
    """The L2 coefficient of the kernels."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """When the learning rate falls to a tenth, as fractions of all epochs."""
    label_smoothing: float = 0.0
    """Part of a label that is spread evenly over all classes, in the training loss."""
    ema: float = 0.0
    """Decay a step of a running mean of the network, which is tested and converted in its place:
    0.999 is a mean of about the last 1000 steps; 0 for none."""

    def __post_init__(self) -> None:
        _require_types(self, "optim.")
        _require(0 < self.lr < math.inf, "optim.lr", "finite and above 0", self.lr)
        _require(
            self.lr_batch is None or self.lr_batch > 0, "optim.lr_batch", "above 0", self.lr_batch
        )
        for name in ("warmup", "momentum", "label_smoothing", "ema"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optim.{name}", "in [0, 1)", value)
        for name, value in (("alpha", self.alpha), ("weight_decay", self.weight_decay)):
            _require(
                0 <= value < math.inf,
                f"optim.{name}",
                "finite and not negative",
                value,
            )
        _require(
            all(0 < m < 1 for m in self.milestones)
            and list(self.milestones) == sorted(self.milestones),
            "optim.milestones",
            "rising within (0, 1)",
            self.milestones,
        )


@dataclass(frozen=True)
class Config:
    """A training run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int = 200
    batch_size: int = 128
    """Images a step, over all devices."""
    accumulate: int = 1
    """Parts of a batch that a step computes one after another, on GPU and TPU in less memory: their
    gradients are averaged, and batch normalisation sees one at a time."""
    seed: int = 0
    """Seed of the initial weights, the order of images and their augmentation."""

    def __post_init__(self) -> None:
        _require_types(self, "")
        _require(self.epochs > 0, "epochs", "above 0", self.epochs)
        _require(self.batch_size > 0, "batch_size", "above 0", self.batch_size)
        _require(self.accumulate > 0, "accumulate", "above 0", self.accumulate)
        _require(
            self.batch_size % self.accumulate == 0,
            "accumulate",
            f"a divisor of batch_size={self.batch_size}",
            self.accumulate,
        )
        _require(self.seed >= 0, "seed", "0 or above", self.seed)

    @property
    def at_once(self) -> int:
        """Images that are computed together, over all devices."""
        return self.batch_size // self.accumulate


def write(config: Config, path: Path) -> None:
    """Write a configuration as JSON."""
    write_json(path, dataclasses.asdict(config))


def read(path: Path) -> Config:
    """Read what `write` wrote.

    Raises:
        InputError: the file is missing, is not JSON, or holds unknown or unfit settings.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path.parent} is not a run: it has no {path.name}; make one with train.py"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}; restore it or train again") from None
    return _from_dict(loaded, path)


def _from_dict(loaded: Any, path: Path) -> Config:
    parts = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig}
    try:
        values = {k: parts[k](**_tuples(v)) if k in parts else v for k, v in loaded.items()}
        return Config(**values)
    except InputError as error:
        raise InputError(f"{path} is of no use: {error}") from None
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path} does not describe a run of this version: {error}") from None


def _tuples(section: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


def differences(a: Config, b: Config) -> list[str]:
    """Settings in which two configurations differ, as ``name: a's value ≠ b's value``."""
    flat_a, flat_b = flat(a), flat(b)
    return [f"{k}: {flat_a[k]} ≠ {flat_b[k]}" for k in flat_a if flat_a[k] != flat_b[k]]


def flat(config: Config) -> dict[str, Any]:
    """Settings by their names, as ``optim.lr``."""
    found: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        parts = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {}
        found |= parts or {name: value}
    return found
