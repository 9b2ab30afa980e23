"""Losses of a short training on all devices of all processes, as test_processes.py starts it.

Arguments: the coordinator's address, how many processes there are, which one this is, and the file
that the first writes: by dtype, and with all that large batches need, losses and then the norm of a
kernel; and what the augmented images are, all of them.
"""

import itertools
import json
import sys
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax import cluster, data
from tcl_jax.models.layers import Activation, ConvNorm, flatten, logits
from tcl_jax.training import optimizer, presets
from tcl_jax.training.placement import placed
from tcl_jax.training.step import init_state, make_train_step, read_metrics

PRESET = presets.PRESETS.find("digits-cnet")
STEPS = {"float32": 10, "float64": 50, "large": 10}
LARGE = {"smoothing": 0.1, "ema": 0.9, "accumulate": 2}
"""All that a step for large batches has; its optimizer's state is cut over the devices, too."""


class Network(nn.Module):
    """Of all that a network here has, little: it is compiled for each process and type."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        x = ConvNorm(8, strides=2, dtype=self.dtype, name="conv")(x, train=train)
        x = Activation(True, 4.0, name="act")(x)
        return logits(nn.Dense(10, dtype=self.dtype, name="fc")(flatten(x)))


def batches(everyone: cluster.Cluster, steps: int) -> list[Any]:
    """This process's part of the first ones, cut at random."""
    with closing(
        data.train_batches(
            data.load("digits"),
            batch_size=PRESET.batch_size,
            seed=PRESET.seed,
            augment="crop_flip",
            shard=everyone.shard,
        )
    ) as stream:
        return list(itertools.islice(stream, steps))


def losses(
    everyone: cluster.Cluster, start: Any, dtype: str, steps: int, **large: Any
) -> list[float]:
    """At every step, at the preset's own learning rate, from a state on."""
    info = data.load("digits").info
    tx = optimizer.make(PRESET.optim, total_steps=1000, batch_size=1)
    start = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, start)
    if not large:
        start = start.replace(average=None)
    where = placed(start, everyone, shard_optimizer=bool(large))
    state = everyone.place(start, where)
    step = make_train_step(Network(jnp.dtype(dtype)), tx, info, where=where, **large)
    found = []
    for batch in batches(everyone, steps):
        state, metrics = step(state, everyone.put(batch))
        found.append(read_metrics(metrics)["loss"])
    last = everyone.gathered(state.network["params"]["fc"]["kernel"])
    return [*found, np.linalg.norm(np.asarray(last)).item()]


def main(address: str, processes: str, process: str, out: str) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    if int(processes) > 1:
        jax.distributed.initialize(address, int(processes), int(process))
    everyone = cluster.everywhere()
    content = {"devices": everyone.mesh.size, "processes": everyone.processes}
    images = [np.concatenate(everyone.gather(batch["image"])) for batch in batches(everyone, 5)]
    content["images"] = [zlib.crc32(image.tobytes()) for image in images]
    info = data.load("digits").info
    model, tx = Network(), optimizer.make(PRESET.optim, total_steps=1000, batch_size=1)
    start = jax.device_get(init_state(model, tx, info, PRESET.seed, average=True))
    for how, steps in STEPS.items():
        dtype = "float32" if how == "float32" else "float64"
        jax.config.update("jax_enable_x64", dtype == "float64")
        large = LARGE if how == "large" else {}
        content[how] = losses(everyone, start, dtype, steps, **large)
    if everyone.writes:
        Path(out).write_text(json.dumps(content))


if __name__ == "__main__":
    main(*sys.argv[1:])
