"""A finished run, opened: its network with trained variables, and its data."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax import data
from tcl_jax.errors import InputError
from tcl_jax.graph.convolution import PRECISION
from tcl_jax.runs.batches import Split, standardised
from tcl_jax.training import CHECKPOINTS, CONFIG, Checkpoints, build_model, load_dataset
from tcl_jax.training import config as configs
from tcl_jax.training.checkpoint import MODEL
from tcl_jax.training.config import Config
from tcl_jax.training.evaluation import inference

Which = Literal["last", "best"] | int


@dataclass(frozen=True)
class Run:
    """A trained network and its data.

    Attributes:
        folder: the run's folder.
        config: what was trained.
        step: step of the checkpoint that was read.
        total_steps: the last of the training, once it has ended.
        dataset: the images.
        model: the network, as it was trained.
        variables: its trained parameters and batch statistics, in float32 whatever it computed in.
    """

    folder: Path
    config: Config
    step: int
    total_steps: int
    dataset: data.Dataset
    model: nn.Module
    variables: Any

    @property
    def trained_in(self) -> str:
        """The type that the network computed in while it was trained."""
        return self.config.model.dtype

    @property
    def float32(self) -> nn.Module:
        """The network, computing in float32.

        This is what is converted, whatever the network was trained in: its parameters have all
        their digits, of which training in bfloat16 rounds a copy at every step.
        """
        return self.model.clone(dtype=jnp.float32)

    def logits(self, images: Float[Array, "b h w c"]) -> Float[Array, "b classes"]:
        """The network in inference mode on standardised images, in float32 on any backend."""
        return inference(self.float32, PRECISION)(self.variables, images)

    def batches(self, split: Split, batch_size: int, **which: Any) -> Iterator[dict[str, Any]]:
        """Images of a split, as `standardised` has them."""
        standardize = partial(data.standardize, info=self.dataset.info)
        return standardised(self.dataset, standardize, split, batch_size, **which)


def open_run(
    folder: Path,
    *,
    checkpoint: Which = "last",
    data_dir: Path | None = None,
    raw_dir: Path | None = None,
) -> Run:
    """Open a run's folder.

    Args:
        folder: what train.py left behind.
        checkpoint: the last state, the one of the highest test accuracy (chosen on test images:
            figures of such a network are no estimate of its accuracy on new ones), or a step.  Of
            the first two, a damaged one is passed over with a warning.  What is read of it is the
            network alone, whatever trained it.
        data_dir: where prepared data sets lie; TFDS's default when None.
        raw_dir: where raw files of the data set lie.

    Raises:
        InputError: no run, no checkpoint, a damaged one or one of another network; data missing.
    """
    folder = Path(folder)
    config = configs.read(folder / CONFIG)
    if not (folder / CHECKPOINTS).is_dir():
        raise InputError(f"{folder} has no checkpoints: train it first, or restore them")
    dataset = load_dataset(config, data_dir=data_dir, raw_dir=raw_dir)
    model = build_model(config, dataset.info)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *dataset.info.image_shape)))
    )
    like = {MODEL: {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}}
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        steps = checkpoints.steps
        if checkpoint == "best":
            candidates = checkpoints.by_accuracy()
        else:
            candidates = steps[::-1] if checkpoint == "last" else [checkpoint]
        if not set(candidates) & set(steps):
            raise InputError(
                f"{folder} has no checkpoint {checkpoint} (it has {steps or 'none'}): "
                "train it first, or convert it again"
            )
        step, found, _ = checkpoints.first_intact(
            candidates, lambda step: checkpoints.restore(step, like)
        )
    variables = jax.tree.map(jnp.asarray, found[MODEL])
    total = config.epochs * data.steps_per_epoch(dataset.info, config.batch_size)
    return Run(folder, config, step, total, dataset, model, variables)
