"""The layer by layer report of a run's conversion: `report.json`, and three plots beside it."""

from collections.abc import Sequence

from tcl_jax import provenance
from tcl_jax.errors import InputError
from tcl_jax.record import write_json
from tcl_jax.report import layer_plots
from tcl_jax.report.layers import Layer, as_json, layer_report
from tcl_jax.runs.converted import Converted


def report_run(
    converted: Converted,
    *,
    images: int = 100,
    timesteps: Sequence[int] = (10, 30, 100),
    batch_size: int = 100,
) -> list[Layer]:
    """Compare a spiking network with what it was converted from, layer by layer, on test images.

    Writes `report.json`, `activations.png`, `rates.png` (at the longest T) and `errors.png` into
    the spiking network's folder.

    Args:
        converted: the spiking network, as `convert_run` or `open_converted` gives it.
        images: number of test images, from the first.
        timesteps: latencies T to report at.
        batch_size: images at a time.

    Returns:
        Reports of all layers.

    Raises:
        InputError: a number is not above 0.
    """
    if images < 1 or batch_size < 1 or not timesteps:
        raise InputError("a report needs at least one image, and at least one latency T")
    about, graph, info = converted.artifact.about, converted.artifact.graph, converted.dataset.info
    images = min(images, info.num_test)
    batches = converted.batches("test", min(batch_size, images), limit=images)
    found = layer_report(graph, ((b["image"], b["mask"]) for b in batches), timesteps)
    title = f"{about['network']} on {info.name}, {about['norm']} norm, {images} test images"
    measured = {"images": images, "norm": about["norm"], "v0": 0.0}
    content = as_json(found, graph, **measured, **provenance.describe())
    folder = converted.place
    write_json(folder / "report.json", content, indent=None)
    layer_plots.plot_activations(found, folder / "activations.png", title=title)
    layer_plots.plot_rates(found, max(timesteps), folder / "rates.png", title=title)
    layer_plots.plot_errors(found, folder / "errors.png", title=title)
    return found
