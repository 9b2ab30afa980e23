"""What a training says of itself as it begins."""

import jax

from tcl_jax import data
from tcl_jax.clipping import LAMBDA
from tcl_jax.cluster import Cluster
from tcl_jax.training.config import Config
from tcl_jax.training.optimizer import highest_rate, named
from tcl_jax.training.placement import CUT, bytes_on_each, placed
from tcl_jax.training.step import TrainState


def headlines(
    config: Config, info: data.DataInfo, cluster: Cluster, shapes: TrainState, where: TrainState
) -> list[str]:
    """The network, the images and the devices; then, if so, that lr is scaled and a state cut.

    Args:
        config: what is trained.
        info: of its images.
        cluster: the devices.
        shapes: of the state's arrays.
        where: their shardings.
    """
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    clips = sum(jax.tree.leaves(named(shapes.params, LAMBDA)))
    optim, devices = config.optim, cluster.mesh.devices
    lines = [
        f"{config.model.name}, {parameters / 1e6:.2f} M parameters, "
        + (f"λ of {clips} layers trained with α = {optim.alpha:g}" if clips else "no TCL")
        + f"; {info.name}, {info.num_train} images of {'×'.join(map(str, info.image_shape))}; "
        + _counted(devices.size, f"{devices.flat[0].platform} device")
        + (f" of {cluster.processes} processes" if cluster.processes > 1 else "")
    ]
    if (rate := highest_rate(optim, config.batch_size)) != optim.lr:
        lines.append(
            f"learning rate {rate:g}: {optim.lr:g} for batches of {optim.lr_batch}, scaled to "
            f"{config.batch_size}"
        )
    everything, each = (
        sum(bytes_on_each(getattr(shapes, name), getattr(there, name)) for name in CUT)
        for there in (placed(shapes, cluster), where)
    )
    if each < everything:
        lines.append(
            f"optimizer state cut over {devices.size} devices: {each / 1e6:.2f} MB on each, not "
            f"{everything / 1e6:.2f} MB"
        )
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"
