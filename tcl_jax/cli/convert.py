"""Convert a trained network into a spiking one: `convert.py RUN`, or `tcl-convert RUN`."""

from tcl_jax.cli.terminal import ends_at_ctrl_c, reported_at_exit

with ends_at_ctrl_c():  # these take seconds
    from dataclasses import dataclass
    from pathlib import Path
    from typing import Annotated, Literal

    import tyro

    from tcl_jax.calibration import NORMS
    from tcl_jax.cli.options import Folder, Whole, check_options, command
    from tcl_jax.cli.processes import ALONE, Processes
    from tcl_jax.errors import InputError
    from tcl_jax.report.tables import print_conversion, print_layers
    from tcl_jax.runs.convert import convert_run
    from tcl_jax.runs.converted import Converted
    from tcl_jax.runs.report import report_run
    from tcl_jax.runs.trained import open_run

NORM_HELP = (
    "Norm-factors λ: trained (tcl), or found from calibration images, as by percentile:99.9; one a "
    f"channel where /channel follows.  Choose from {NORMS.help()}."
)


@dataclass(frozen=True)
class Options:
    """Convert a run's network into a spiking one; verify that it computes the same."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, as train.py left it."""
    norm: Annotated[str, tyro.conf.arg(help=NORM_HELP)] = "tcl"
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Type that weights are rounded to; what that changes is measured and printed.  Networks of
    int8 have potentials of 32 bits, and bit-identical spikes on every machine."""
    snn: str = "snn"
    """Name of the spiking network, a folder within the run's."""
    checkpoint: Literal["last", "best"] = "last"
    """Which trained state: the last, or the one of the highest test accuracy."""
    calibration_images: int = 2000
    """Training images from which norm-factors are read (the output's in any case)."""
    verification_images: int = 1000
    """Test images on which folded and normalised networks must give the trained one's logits."""
    images: Whole = None
    """Test images on which the trained network's accuracy is found, for simulate.py to compare
    with (default: all)."""
    report_images: int = 100
    """Test images on which every layer's activations and spike rates are compared; 0 for none."""
    report_timesteps: tuple[int, ...] = (10, 30, 100)
    """Latencies T at which they are."""
    batch_size: int = 100
    """Images at a time."""
    data_dir: Folder = None
    """Where prepared data sets lie (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)."""
    raw_dir: Folder = None
    """Where the data set's raw files lie."""
    processes: tyro.conf.OmitArgPrefixes[Processes] = ALONE


@reported_at_exit(Options)
def main() -> int:
    o = check_options(Options)
    if o.report_images < 0 or min(o.report_timesteps, default=0) < 1:
        raise InputError("--report-images must not be negative, and --report-timesteps above 0")
    data = {"data_dir": o.data_dir, "raw_dir": o.raw_dir}
    with o.processes.joined(batch_size=1) as cluster:  # what is converted is on one device
        run = cluster.first(lambda: open_run(o.run, checkpoint=o.checkpoint, **data))
        converted = convert_run(
            run,
            norm=o.norm,
            weights=o.weights,
            snn=o.snn,
            calibration_images=o.calibration_images,
            verification_images=o.verification_images,
            images=o.images,
            batch_size=o.batch_size,
            cluster=cluster,
        )
        cluster.alone(lambda: _report(o, converted))
    return 0


def _report(o: Options, converted: Converted) -> None:
    print_conversion(converted.artifact.about)
    if o.report_images:
        layers = report_run(
            converted,
            images=o.report_images,
            timesteps=o.report_timesteps,
            batch_size=o.batch_size,
        )
        print_layers(layers, max(o.report_timesteps))
    named = () if o.snn == Options.snn else ("--snn", o.snn)
    then = command("simulate", o.run, *named, "--timesteps", 100)
    print(f"wrote {o.run / o.snn}; next: {then}")
