"""The training loop: epochs, checkpoints, logs, and an orderly end however it comes."""

import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax import data
from tcl_jax.cluster import Cluster, everywhere
from tcl_jax.errors import InputError
from tcl_jax.training.config import Config, flat
from tcl_jax.training.evaluation import evaluate, make_eval_step
from tcl_jax.training.headlines import headlines
from tcl_jax.training.recorder import Recorder, check_folder, recorder_of
from tcl_jax.training.setup import load_dataset
from tcl_jax.training.step import lambdas, read_metrics
from tcl_jax.training.task import task

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
    cluster: Cluster | None = None,
    shard_optimizer: bool = False,
    save_steps: int | None = None,
    save_minutes: float | None = None,
    workers: int = 0,
) -> Result:
    """Train a network and leave a run's folder behind.

    The folder holds `config.json`, `environment.json`, `checkpoints/` (the two newest states and
    the one of the highest test accuracy), `metrics.jsonl`, TensorBoard events and `heartbeat.json`,
    which tells from outside whether it still lives (`tcl_jax.training.heartbeat`).  The state is
    saved at the end of every epoch, and as often as asked for, while training goes on.

    Interrupted by Ctrl-C or SIGTERM, the run ends with its state saved after the step at hand, or
    the batch that is evaluated; several processes, of which any may be told, take one more to
    agree.  Resumed, it goes on exactly as if nothing had happened, for every random choice is a
    function of the seed and the step; by other processes on as many devices too, and on another
    number of devices but for the rounding of sums.  Where the newest checkpoint is damaged, it
    goes on from the one before.

    Args:
        config: what to train.
        workdir: the run's folder.
        resume: continue the run that `workdir` holds.
        data_dir: where prepared data sets lie; TFDS's default when None.
        raw_dir: where raw files of the data set lie.
        cluster: the devices, and the processes; all there are when None.  Each process calls this,
            the first alone writes, and reads what was written.
        shard_optimizer: cut the optimizer's momentum, and a running mean of the network, over all
            devices, each of which updates its part (Rajbhandari et al. 2020, *ZeRO*, stage 1).
        save_steps: save the state after every so many steps, too.
        save_minutes: save it where the last was saved so many minutes ago, too.
        workers: processes that decode and cut training images beside each of `cluster`'s
            (`tcl_jax.data.train_batches`); with 0 its threads do.

    Returns:
        How it ended.

    Raises:
        InputError: an argument is out of range, the folder holds a run already (without `resume`)
            or none or another one (with it), another training goes on in it, the data are missing,
            processes have different settings, the loss is not finite, a λ fell to 0, or a
            checkpoint cannot be written.
    """
    workdir = Path(workdir)
    cluster = cluster or everywhere()
    cluster.check_batch_size(config.batch_size, config.accumulate)
    if save_steps is not None and save_steps < 1:
        raise InputError(f"must be at least 1, got {save_steps}", "save_steps")
    if save_minutes is not None and not save_minutes > 0:
        raise InputError(f"must be above 0, got {save_minutes:g}", "save_minutes")
    if workers < 0:
        raise InputError(f"must not be negative, got {workers}", "workers")
    options = {"save_steps": save_steps, "save_minutes": save_minutes}
    cluster.check_same(**flat(config), shard_optimizer=shard_optimizer, **options)
    cluster.alone(lambda: check_folder(config, workdir, resume))
    dataset = cluster.first(lambda: load_dataset(config, data_dir=data_dir, raw_dir=raw_dir))
    info = dataset.info
    cluster.check_same(images=info)
    it = task(config, info, cluster, shard_optimizer=shard_optimizer)
    steps_per_epoch, total_steps = it.steps_per_epoch, it.total_steps
    eval_step = make_eval_step(it.model, info)

    with (
        _interruptible() as received,
        recorder_of(cluster, workdir, total_steps) as recorder,
    ):
        begun = cluster.alone(lambda: recorder.begin(config, resume, it.shapes))
        step = begun.step
        saved = None if begun.state is None else step
        # An epoch that has ended, and is saved, but was not evaluated to the end.
        unrated = step % steps_per_epoch == 0 < step and not begun.evaluated
        if step == total_steps and not unrated:
            return Result(step, None, None)
        state = it.fresh() if begun.state is None else cluster.place(begun.state, it.where)
        asked = _Asked(cluster, received, save_minutes)
        accuracy = None
        batches = data.train_batches(
            dataset,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=step,
            augment=config.data.augment,
            shard=cluster.shard,
            workers=workers,
        )
        with closing(batches):
            recorder.start(step, headlines(config, info, cluster, it.shapes, it.where))
            before: Any = None  # what the step before has found, which is ready by now
            started = time.monotonic()

            def save() -> None:
                nonlocal saved
                whole = cluster.to_writer(state)
                cluster.alone(lambda: recorder.save(step, whole))
                saved = step
                asked.saved()

            def heed() -> None:
                recorder.beat(step, "evaluating")
                asked.read()
                if asked.to_stop:
                    raise _Stopped

            while (unrated or step < total_steps) and not asked.to_stop:
                if not unrated:
                    if step % steps_per_epoch == 0:
                        none = jax.tree.map(jnp.zeros_like, state.sums)
                        state = dataclasses.replace(state, sums=none)
                    state, metrics = it.step(state, cluster.put(next(batches)))
                    step += 1
                    _check_and_log(recorder, before, step - 1)
                    before = metrics
                    recorder.advance(step)
                    asked.read()
                    ended = step % steps_per_epoch == 0
                    if ended or asked.to_save or (save_steps and step % save_steps == 0):
                        _check_and_log(recorder, before, step)
                        before = None
                        save()
                    if not ended:
                        continue
                    unrated = True
                try:
                    network = cluster.gathered(state.network)
                    test = evaluate(
                        network, eval_step, dataset.test, config.at_once, cluster, done=heed
                    )
                except _Stopped:
                    break
                sums, bounds = jax.device_get((state.sums, lambdas(network["params"])))
                found = {
                    "epoch": step // steps_per_epoch,
                    "train_loss": sums["loss"].item() / steps_per_epoch,
                    "train_accuracy": sums["accuracy"].item() / steps_per_epoch,
                    "test_loss": test["loss"],
                    "test_accuracy": test["accuracy"],
                    "lr": float(it.schedule(step - 1)),
                    "seconds": time.monotonic() - started,
                    "lambda": {name: bound.item() for name, bound in bounds.items()},
                }
                accuracy = test["accuracy"]
                line = _line(found, config.epochs)
                cluster.alone(partial(recorder.rate, step, found, line))
                unrated = False
                started = time.monotonic()
            if saved != step:
                _check_and_log(recorder, before, step)
                save()
            cluster.alone(recorder.wait)
        if step == total_steps and not unrated:
            recorder.beat(step, "finished")
            return Result(step, None, accuracy)
    return Result(step, signal.Signals(asked.to_stop), accuracy)


class _Asked:
    """What any process is asked for, heeded by all after the same step: to stop, or to save.

    Args:
        cluster: the processes.
        received: fills as signals come to this one.
        save_minutes: after which to save; None is never.
    """

    def __init__(self, cluster: Cluster, received: list[int], save_minutes: float | None):
        self._cluster, self._received = cluster, received
        self._save_seconds = math.inf if save_minutes is None else 60 * save_minutes
        self.saved()
        self.to_stop = cluster.agree(self._signal())
        """The signal to stop for; 0 is none."""

    def saved(self) -> None:
        """Say that all have saved."""
        self._since = time.monotonic()
        self._vote: Any = (0, 0)  # what was asked before is done
        self.to_save = False

    def read(self) -> None:
        """Learn what was known to all when this was called before; alone, what is known now."""
        due = time.monotonic() - self._since >= self._save_seconds
        vote, self._vote = self._vote, self._cluster.vote(self._signal(), due)
        # The vote of the step before is known by now, and no device waits for it.
        known = np.asarray(vote if self._cluster.processes > 1 else self._vote)
        self.to_stop, self.to_save = self.to_stop or int(known[0]), bool(known[1])

    def _signal(self) -> int:
        # Ctrl-C is a user's, who wants to see that it was heeded.
        return signal.SIGINT if signal.SIGINT in self._received else max(self._received, default=0)


def _check_and_log(recorder: Recorder, metrics: Any, step: int) -> None:
    """Stop where training went astray; read one step late, so that the device never waits."""
    if metrics is None:
        return
    found = read_metrics(metrics)
    loss, smallest = found["loss"], found["smallest_lambda"]
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
        recorder.log("step", step, {"loss": loss})


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
