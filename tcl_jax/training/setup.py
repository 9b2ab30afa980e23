"""From a run's configuration to its data and its network."""

from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp

from tcl_jax import data, models
from tcl_jax.training.config import Config


def load_dataset(
    config: Config, *, data_dir: Path | None = None, raw_dir: Path | None = None
) -> data.Dataset:
    """The images of a run; see `tcl_jax.data.load`."""
    return data.load(
        config.data.name,
        data_dir=data_dir,
        raw_dir=raw_dir,
        pad_to=config.data.pad_to,
        image_size=config.data.image_size,
    )


def build_model(config: Config, info: data.DataInfo) -> nn.Module:
    """The network of a run; see `tcl_jax.models.create`."""
    return models.create(
        config.model.name,
        image_shape=info.image_shape,
        num_classes=info.num_classes,
        tcl=config.model.tcl,
        lam=config.model.lam,
        dtype=jnp.dtype(config.model.dtype),
    )
