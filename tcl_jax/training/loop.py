"""The training loop: epochs, checkpoints, logs, and an orderly end however it comes."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tcl_jax import cluster, data, progress, provenance
from tcl_jax.errors import InputError
from tcl_jax.record import write_json
from tcl_jax.training import config as configs
from tcl_jax.training import optimizer
from tcl_jax.training.checkpoint import Checkpoints
from tcl_jax.training.config import Config
from tcl_jax.training.heartbeat import HEARTBEAT, Heartbeat
from tcl_jax.training.log import METRICS, MetricsLog, read
from tcl_jax.training.setup import build_model, load_dataset
from tcl_jax.training.step import (
    TrainState,
    init_state,
    lambdas,
    make_eval_step,
    make_train_step,
    no_sums,
    rates,
)

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
_LOG_EVERY = 50


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        step: the last step taken.
        stopped_by: the signal that interrupted it, its state saved; None of a finished run.
        test_accuracy: of the last evaluation in this call, if there was one; None of a finished
            run means that it was finished before.
    """

    step: int
    stopped_by: signal.Signals | None
    test_accuracy: float | None


class _Stopped(Exception):
    """An evaluation was interrupted."""


def fit(
    config: Config,
    workdir: Path,
    *,
    resume: bool = False,
    data_dir: Path | None = None,
    raw_dir: Path | None = None,
) -> Result:
    """Train a network and leave a run's folder behind.

    The folder holds `config.json`, `environment.json`, `checkpoints/` (the two newest states and
    the one of the highest test accuracy), `metrics.jsonl`, TensorBoard events and `heartbeat.json`,
    which tells from outside whether it still lives (`tcl_jax.training.heartbeat`).  Interrupted by
    Ctrl-C or SIGTERM, the run ends with its state saved after the step at hand, or the batch that
    is evaluated; resumed, it goes on exactly as if nothing had happened, for every random choice is
    a function of the seed and the step.  Where the newest checkpoint is damaged, it goes on from
    the one before.

    Args:
        config: what to train.
        workdir: the run's folder.
        resume: continue the run that `workdir` holds.
        data_dir: where prepared data sets lie; TFDS's default when None.
        raw_dir: where raw files of the data set lie.

    Returns:
        How it ended.

    Raises:
        InputError: the folder holds a run already (without `resume`) or none or another one (with
            it), another process trains in it, the data are missing, the loss is not finite, a λ
            fell to 0, or a checkpoint cannot be written.
    """
    workdir = Path(workdir)
    mesh = cluster.data_mesh()
    cluster.check_batch_size(config.batch_size, mesh)
    _check_folder(config, workdir, resume)
    dataset = load_dataset(config, data_dir=data_dir, raw_dir=raw_dir)
    info = dataset.info
    model = build_model(config, info)
    steps_per_epoch = data.steps_per_epoch(dataset, config.batch_size)
    total_steps = steps_per_epoch * config.epochs
    tx = optimizer.make(config.optim, total_steps)
    schedule = optimizer.learning_rate(config.optim, total_steps)
    train_step, eval_step = make_train_step(model, tx, info), make_eval_step(model, info)

    workdir.mkdir(parents=True, exist_ok=True)
    state = cluster.replicate(init_state(model, tx, info, config.seed), mesh)
    with (
        _interruptible() as interrupted,
        Heartbeat(workdir, total_steps) as heartbeat,
        Checkpoints(workdir / CHECKPOINTS) as checkpoints,
    ):
        _check_folder(config, workdir, resume)  # another may have begun, and ended, meanwhile
        records = read(workdir / METRICS) if (workdir / METRICS).exists() else []
        step = 0
        if resume and checkpoints.steps and (workdir / CONFIG).exists():
            step, state = _restored(checkpoints, state)
        elif checkpoints.steps or any(r["kind"] == "epoch" for r in records):
            raise InputError(
                f"{workdir} holds only a part of a run, {CONFIG} or {CHECKPOINTS} being gone: "
                "restore it, or choose another folder"
            )
        else:
            configs.write(config, workdir / CONFIG)
            write_json(workdir / "environment.json", provenance.describe())
        # An epoch that has ended, and is saved, but was not evaluated to the end.
        unrated = step % steps_per_epoch == 0 < step and not _evaluated(records, step)
        if step == total_steps and not unrated:
            return Result(step, None, None)
        heartbeat.beat(step, "starting")
        accuracy = None
        batches = data.train_batches(
            dataset,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=step,
            augment=config.data.augment,
        )
        with (
            closing(batches),
            MetricsLog(workdir, step) as log,
            progress.make("steps") as display,
        ):
            progress.say(display, _headline(config, state, info, mesh))
            if resume and (died := heartbeat.died):
                progress.say(display, f"the training before died, {died.doing} at step {died.step}")
            if resume and not checkpoints.steps:
                progress.say(display, "it had saved no checkpoint: starting anew")
            bar = display.add_task("training", total=total_steps, completed=step, note="")
            before: dict[str, Any] = {}  # the step before, whose numbers are ready by now
            started = time.monotonic()

            def heed() -> None:
                heartbeat.beat(step, "evaluating")
                if interrupted:
                    raise _Stopped

            while (unrated or step < total_steps) and not interrupted:
                if not unrated:
                    if step % steps_per_epoch == 0:
                        none = jax.tree.map(jnp.zeros_like, state.sums)
                        state = dataclasses.replace(state, sums=none)
                    state, metrics = train_step(state, cluster.shard_batch(next(batches), mesh))
                    step += 1
                    _check_and_log(log, before, step - 1)
                    before = metrics
                    heartbeat.beat(step, "training")
                    display.advance(bar)
                    if step % steps_per_epoch:
                        continue
                    _check_and_log(log, before, step)
                    before = {}
                    heartbeat.beat(step, "saving")
                    checkpoints.save(step, state)
                    unrated = True
                try:
                    test = evaluate(
                        state, eval_step, dataset.test, config.batch_size, mesh, done=heed
                    )
                except _Stopped:
                    break
                record = {
                    "epoch": step // steps_per_epoch,
                    "train_loss": state.sums["loss"].item() / steps_per_epoch,
                    "train_accuracy": state.sums["accuracy"].item() / steps_per_epoch,
                    "test_loss": test["loss"],
                    "test_accuracy": test["accuracy"],
                    "lr": float(schedule(step - 1)),
                    "seconds": time.monotonic() - started,
                    "lambda": {k: v.item() for k, v in lambdas(state.params).items()},
                }
                accuracy = test["accuracy"]
                heartbeat.beat(step, "saving")
                checkpoints.rate(step, accuracy)
                log.write("epoch", step, record)
                unrated = False
                progress.say(display, _line(record, config.epochs))
                display.update(bar, note=f"test {accuracy:.2%}")
                started = time.monotonic()
            if checkpoints.last_step != step:
                _check_and_log(log, before, step)
                heartbeat.beat(step, "saving")
                checkpoints.save(step, state)
        if step == total_steps and not unrated:
            heartbeat.beat(step, "finished")
            return Result(step, None, accuracy)
    by = signal.SIGINT if signal.SIGINT in interrupted else signal.SIGTERM
    return Result(step, by, accuracy)


def evaluate(
    state: TrainState,
    eval_step: Any,
    source: data.Source,
    batch_size: int,
    mesh: Mesh,
    *,
    done: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean loss and accuracy over a whole split, exact whatever the batch size.

    Args:
        state: what is evaluated.
        eval_step: of `make_eval_step`.
        source: the split.
        batch_size: images at a time, over all devices.
        mesh: the devices.
        done: called after each batch.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    sums = no_sums(mesh)
    with closing(data.eval_batches(source, batch_size=batch_size)) as batches:
        for batch in batches:
            sums = eval_step(variables, sums, cluster.shard_batch(batch, mesh))
            done()
    return rates(sums)


def _check_folder(config: Config, workdir: Path, resume: bool) -> None:
    # Killed at its very start, a run has nothing but its heartbeat.
    if resume and ((workdir / CONFIG).exists() or not (workdir / HEARTBEAT).exists()):
        differ = configs.differences(configs.read(workdir / CONFIG), config)
        if differ:
            raise InputError(
                f"{workdir} was trained with other settings ({'; '.join(differ)}): resume with "
                "those, or choose another folder"
            )
    elif workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file: choose another folder")
    elif (workdir / CONFIG).exists():
        raise InputError(
            f"{workdir} holds a run already: continue it with resume=True, or choose another folder"
        )


def _restored(checkpoints: Checkpoints, like: TrainState) -> tuple[int, TrainState]:
    """The newest state that is not damaged; those after it are set aside, for new ones."""
    steps = checkpoints.steps[::-1]
    step, found, damaged = checkpoints.first_intact(
        steps, lambda step: checkpoints.restore(step, vars(like))
    )
    for broken in damaged:
        checkpoints.set_aside(broken)
    return step, TrainState(**found)


def _evaluated(records: list[dict[str, Any]], step: int) -> bool:
    return any(r["kind"] == "epoch" and r["step"] == step for r in records)


def _check_and_log(log: MetricsLog, metrics: dict[str, Any], step: int) -> None:
    """Stop where training went astray; read one step late, so that the device never waits."""
    if not metrics:
        return
    loss, smallest = metrics["loss"].item(), metrics["smallest_lambda"].item()
    if not math.isfinite(loss):
        raise InputError(
            f"the loss became {loss} at step {step}: lower optim.lr (checkpoints saved before "
            "are kept)"
        )
    if not smallest > 0:
        raise InputError(
            f"a λ fell to {smallest:.3g} at step {step}, where it must stay above 0: lower "
            "optim.alpha or optim.lr"
        )
    if step % _LOG_EVERY == 0:
        log.write("step", step, {"loss": loss})


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM comes; a second SIGINT stops at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _headline(config: Config, state: TrainState, info: data.DataInfo, mesh: Mesh) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    clips = len(lambdas(state.params))
    return (
        f"{config.model.name}, {parameters / 1e6:.2f} M parameters, "
        + (f"λ of {clips} layers trained with α = {config.optim.alpha:g}" if clips else "no TCL")
        + f"; {info.name}, {info.num_train} images of {'×'.join(map(str, info.image_shape))}; "
        f"{mesh.size} {mesh.devices.flat[0].platform} device{'s' if mesh.size > 1 else ''}"
    )


def _line(record: dict[str, Any], epochs: int) -> str:
    line = (
        f"epoch {record['epoch']}/{epochs}  train loss {record['train_loss']:.4f}  "
        f"test loss {record['test_loss']:.4f}  test accuracy {record['test_accuracy']:.2%}  "
        f"{record['seconds']:.0f} s"
    )
    if record["lambda"]:
        low, high = min(record["lambda"].values()), max(record["lambda"].values())
        line += f"  λ {low:.2f}–{high:.2f}"
    return line
