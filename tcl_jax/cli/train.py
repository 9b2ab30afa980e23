"""Train a network with trainable clipping layers: `train.py PRESET`, or `tcl-train PRESET`."""

from tcl_jax.cli.terminal import ends_at_ctrl_c, reported_at_exit

with ends_at_ctrl_c():  # these take seconds
    import signal
    import sys
    from dataclasses import dataclass
    from pathlib import Path
    from typing import Annotated

    import tyro

    from tcl_jax.cli.options import Folder, check_options, command, preset_and_options, program
    from tcl_jax.cli.processes import ALONE, Processes
    from tcl_jax.errors import InputError
    from tcl_jax.progress import bar
    from tcl_jax.report.tables import print_plan
    from tcl_jax.topology import find
    from tcl_jax.training import Result, fit, presets
    from tcl_jax.training.config import Config
    from tcl_jax.training.plan import plan


@dataclass(frozen=True)
class Options:
    """Train a network; its folder is what convert.py and simulate.py go on from."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: Path
    """The run's folder: configuration, checkpoints, metrics, later the spiking network."""
    resume: bool = False
    """Continue the run in the folder, exactly where it stopped."""
    data_dir: Folder = None
    """Where prepared data sets lie (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)."""
    raw_dir: Folder = None
    """Where the data set's raw files lie, for a machine that cannot download them."""
    shard_optimizer: bool = False
    """Cut the optimizer's state over all devices, which saves memory on each."""
    save_steps: int | None = None
    """Save a checkpoint after every so many steps, as well as at the end of an epoch."""
    save_minutes: float | None = None
    """Save one as soon as the last is so many minutes old, too."""
    workers: Annotated[int, tyro.conf.arg(name="data.workers")] = 0
    """Processes that decode and cut photographs beside each that trains; 0 leaves it to threads."""
    plan: str | None = None
    """Do not train, but compile the step for TPU chips that are not here, as v5e:16x16, and say
    what it takes on each and how long; needs pip install 'tcl_jax[plan]'."""
    processes: tyro.conf.OmitArgPrefixes[Processes] = ALONE


@reported_at_exit(Options)
def main() -> int:
    name, arguments = preset_and_options(presets.PRESETS)
    default = Options(presets.PRESETS.find(name), Path("runs") / name)
    options = check_options(Options, default, arguments, prog=f"{program()} {name}")
    if options.plan is not None:
        if options.resume or options.processes.distributed:
            raise InputError("--plan does not train: leave --resume and --distributed out")
        there = find(options.plan)
        with bar("compiling", total=1, unit="programs"):
            planned = plan(options.config, there, shard_optimizer=options.shard_optimizer)
        print_plan(planned.said())
        return 0
    with options.processes.joined(options.config.at_once) as cluster:
        result = fit(
            options.config,
            options.workdir,
            resume=options.resume,
            data_dir=options.data_dir,
            raw_dir=options.raw_dir,
            cluster=cluster,
            shard_optimizer=options.shard_optimizer,
            save_steps=options.save_steps,
            save_minutes=options.save_minutes,
            workers=options.workers,
        )
    if cluster.writes:
        _say(options, result)
    return 130 if result.stopped_by == signal.SIGINT else 0


def _say(options: Options, result: Result) -> None:
    """How it ended, and what to run next."""
    if result.stopped_by is not None:
        again = [a for a in sys.argv[1:] if a != "--resume"] + ["--resume"]
        print(f"stopped and saved at step {result.step}; to go on: {command('train', *again)}")
        return
    done = "finished" if result.test_accuracy is not None else "was finished already"
    print(f"{done}: {options.workdir}; next: {command('convert', options.workdir)}")
