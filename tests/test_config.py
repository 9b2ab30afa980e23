"""Configurations and presets: what is written beside a run, and read back."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax import models
from tcl_jax.errors import InputError
from tcl_jax.training import config, presets
from tcl_jax.training.config import Config, DataConfig, ModelConfig, OptimConfig

positive = st.floats(1e-30, 1e30)
configs = st.builds(
    Config,
    model=st.builds(
        ModelConfig,
        name=st.text(),
        tcl=st.booleans(),
        lam=positive,
        dtype=st.sampled_from(["float32", "bfloat16"]),
    ),
    data=st.builds(
        DataConfig,
        name=st.text(),
        augment=st.sampled_from(["none", "crop_flip", "resized_crop_flip"]),
        pad_to=st.none() | st.integers(1, 1000),
        image_size=st.none() | st.integers(1, 1000),
    ),
    optim=st.builds(
        OptimConfig,
        lr=positive,
        lr_batch=st.none() | st.integers(1, 10**6),
        warmup=st.floats(0, 0.999),
        momentum=st.floats(0, 0.999),
        alpha=st.floats(0, 1e30),
        weight_decay=st.floats(0, 1e30),
        milestones=st.lists(st.floats(0.001, 0.999), max_size=5).map(lambda m: tuple(sorted(m))),
        label_smoothing=st.floats(0, 0.999),
        ema=st.floats(0, 0.999),
    ),
    epochs=st.integers(1, 10**6),
    batch_size=st.integers(1, 10**6).map(lambda n: n * 12),
    accumulate=st.sampled_from([1, 2, 3, 4, 6, 12]),
    seed=st.integers(0, 2**31),
)


@given(written=configs)
def test_what_is_written_is_read(written, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "config.json"
    config.write(written, path)
    assert config.read(path) == written
    assert config.differences(written, config.read(path)) == []


@given(a=configs, b=configs)
def test_differences_are_all_differences(a, b):
    found = config.differences(a, b)
    assert (found == []) == (a == b)
    names = [line.split(": ")[0] for line in found]
    for name in names:
        value_a, value_b = a, b
        for part in name.split("."):
            value_a, value_b = getattr(value_a, part), getattr(value_b, part)
        assert value_a != value_b
    assert ("seed" in names) == (a.seed != b.seed)
    assert ("optim.milestones" in names) == (a.optim.milestones != b.optim.milestones)


def test_differences_name_both_values():
    a = presets.PRESETS.find("digits-cnet")
    b = dataclasses.replace(a, epochs=3, model=dataclasses.replace(a.model, lam=2.0))
    assert config.differences(a, b) == ["model.lam: 4.0 ≠ 2.0", "epochs: 40 ≠ 3"]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_can_be_written_and_read(name, tmp_path):
    config.write(presets.PRESETS.find(name), tmp_path / "config.json")
    assert config.read(tmp_path / "config.json") == presets.PRESETS[name]
    network = presets.PRESETS.find(name).model.name.removesuffix("_imagenet")
    assert name.startswith(f"{presets.PRESETS.find(name).data.name}-{network}")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_networks_of_presets_exist_and_take_their_images(name):
    found = presets.PRESETS.find(name)
    sides = {"digits": 8, "fashion_mnist": 28, "cifar10": 32, "cifar100": 32, "imagenet2012": 224}
    side = found.data.pad_to or found.data.image_size or sides[found.data.name]
    models.create(found.model.name, image_shape=(side, side, 3), num_classes=10)


@pytest.mark.parametrize(
    ("name", "epochs", "lr", "alpha", "milestones"),
    [
        ("cifar10-cnet", 200, 0.01, 5e-4, (0.5, 0.75)),
        ("cifar10-vgg16", 200, 0.01, 5e-4, (0.5, 0.75)),
        ("cifar10-resnet20", 200, 0.1, 1e-4, (0.5, 0.75)),
        ("cifar10-mobilenet", 200, 0.1, 1e-4, (0.5, 0.75)),
        ("imagenet2012-vgg16", 100, 0.1, 1e-4, (0.3, 0.6, 0.8)),
        ("imagenet2012-resnet34", 100, 0.1, 1e-4, (0.3, 0.6, 0.8)),
        ("imagenet2012-resnet50", 100, 0.1, 1e-4, (0.3, 0.6, 0.8)),
        ("imagenet2012-mobilenet", 100, 0.1, 1e-4, (0.3, 0.6, 0.8)),
    ],
)
def test_presets_are_the_papers(name, epochs, lr, alpha, milestones):
    found = presets.PRESETS.find(name)
    assert (found.epochs, found.model.lam, found.model.tcl) == (epochs, 4.0, True)
    assert found.optim == OptimConfig(
        lr=lr,
        lr_batch=found.optim.lr_batch,
        momentum=0.9,
        alpha=alpha,
        weight_decay=found.optim.weight_decay,
        milestones=milestones,
    )
    assert found.optim.lr_batch in (None, found.batch_size)


def _with(change: dict) -> dict:
    tree = dataclasses.asdict(presets.PRESETS.find("digits-cnet"))
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        (tree[section] if section else tree)[name] = value
    return tree


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epoch": 3}, "unexpected keyword argument 'epoch'"),
        ({"model.lambda": 3}, "unexpected keyword argument 'lambda'"),
        ({"model": {}}, "argument: 'name'"),
        ({"optim": 3}, "does not describe a run"),
        ({"epochs": "many"}, "epochs must be a whole number, got 'many'"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": -1}, "seed must be 0 or above, got -1"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"accumulate": 0}, "accumulate must be above 0"),
        ({"accumulate": 3}, "accumulate must be a divisor of batch_size=64, got 3"),
        ({"model.tcl": "no"}, "model.tcl must be true or false, got 'no'"),
        ({"model.lam": float("nan")}, "model.lam must be finite and above 0, got nan"),
        ({"model.lam": float("inf")}, "model.lam must be finite and above 0, got inf"),
        ({"model.dtype": "float16"}, "model.dtype must be float32 or bfloat16"),
        ({"data.augment": "mirror"}, "data.augment must be none or crop_flip"),
        ({"data.pad_to": "32"}, "data.pad_to must be a whole number or none, got '32'"),
        ({"data.pad_to": 0}, "data.pad_to must be above 0"),
        ({"optim.lr": None}, "optim.lr must be a number, got None"),
        ({"optim.alpha": float("inf")}, "optim.alpha must be finite and not negative"),
        ({"optim.weight_decay": -1}, "optim.weight_decay must be finite and not negative"),
        ({"optim.momentum": 1}, "optim.momentum must be in [0, 1)"),
        ({"optim.lr_batch": 0}, "optim.lr_batch must be above 0, got 0"),
        ({"optim.warmup": 1.0}, "optim.warmup must be in [0, 1), got 1.0"),
        ({"optim.label_smoothing": -0.1}, "optim.label_smoothing must be in [0, 1)"),
        ({"optim.ema": "yes"}, "optim.ema must be a number, got 'yes'"),
        ({"optim.ema": 1.5}, "optim.ema must be in [0, 1)"),
        ({"optim.milestones": 0.5}, "optim.milestones must be a list of numbers"),
        ({"optim.milestones": ["x"]}, "optim.milestones must be a list of numbers"),
        ({"optim.milestones": [0.8, 0.5]}, "optim.milestones must be rising"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_configuration_that_fits_nothing(change, words, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(_with(change)))
    with pytest.raises(InputError) as refused:
        config.read(path)
    assert words in str(refused.value) and str(path) in str(refused.value)


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"null", b"\xff\xfe"])
def test_a_file_that_is_no_configuration(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        config.read(tmp_path / "config.json")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        config.read(tmp_path / "config.json")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a run"):
        config.read(tmp_path / "file" / "config.json")
