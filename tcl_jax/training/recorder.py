"""What a training leaves in its folder and says on the terminal: the work of one process."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tcl_jax import progress, provenance
from tcl_jax.cluster import Cluster
from tcl_jax.errors import InputError
from tcl_jax.record import write_json
from tcl_jax.training import config as configs
from tcl_jax.training.checkpoint import MODEL, TRAINING, Items
from tcl_jax.training.checkpoints import Checkpoints
from tcl_jax.training.config import Config
from tcl_jax.training.heartbeat import HEARTBEAT, Doing, Heartbeat
from tcl_jax.training.log import METRICS, MetricsLog, read
from tcl_jax.training.step import TrainState

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


class Start(NamedTuple):
    """Where a training goes on.

    Attributes:
        step: the last step that is saved.
        state: after it; None where nothing is saved.
        evaluated: whether its test accuracy is known.
    """

    step: int
    state: TrainState | None
    evaluated: bool


class Recorder:
    """What a training tells; this one, of a process that does not write, tells nothing."""

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def begin(self, config: Config, resume: bool, like: TrainState) -> Start:
        """Take hold of the folder, for a new run or the one that is there.

        Args:
            config: what is trained.
            resume: continue the run that is there.
            like: of the shapes and dtypes of the state.

        Raises:
            InputError: as `fit` says.
        """
        raise NotImplementedError("where to start is for the process that writes to say")

    def start(self, step: int, headlines: list[str]) -> None:
        """Say what is trained, and go on with the log after a step."""

    def beat(self, step: int, doing: Doing) -> None:
        """Tell what is being done."""

    def advance(self, step: int) -> None:
        """Tell that a step was taken."""

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write a record to the log."""

    def save(self, step: int, state: TrainState) -> None:
        """Begin to save a state, which is written while training goes on."""

    def rate(self, step: int, record: dict[str, Any], line: str) -> None:
        """Write what an evaluation has found, of the state that was saved at a step."""

    def wait(self) -> None:
        """Wait until all that was saved is written."""


class FolderRecorder(Recorder):
    """What a training tells, of the process that writes.

    Args:
        workdir: the run's folder.
        total_steps: the last step.
    """

    def __init__(self, workdir: Path, total_steps: int):
        self._workdir, self._total_steps = workdir, total_steps
        self._open = ExitStack()

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def begin(self, config: Config, resume: bool, like: TrainState) -> Start:
        folder = self._workdir
        folder.mkdir(parents=True, exist_ok=True)
        self._heartbeat = self._open.enter_context(Heartbeat(folder, self._total_steps))
        self._checkpoints = self._open.enter_context(Checkpoints(folder / CHECKPOINTS))
        check_folder(config, folder, resume)  # another may have begun, and ended, meanwhile
        self._checkpoints.tidy()
        records = read(folder / METRICS) if (folder / METRICS).exists() else []
        evaluated = [r["step"] for r in records if r["kind"] == "epoch"]
        self._remarks = []
        if resume and (died := self._heartbeat.died):
            said = f"the training before died, {died.doing} at step {died.step}"
            self._remarks.append(said)
        if resume and (steps := self._checkpoints.steps) and (folder / CONFIG).exists():
            step, state = _restored(self._checkpoints, like)
            if evaluated and evaluated[-1] > steps[-1]:
                lost = f"the checkpoint of step {evaluated[-1]} is gone"
                self._remarks.append(f"{lost}: going on from step {step}")
            return Start(step, state, step in evaluated)
        if self._checkpoints.steps or evaluated:
            raise InputError(
                f"{folder} holds only a part of a run, {CONFIG} or {CHECKPOINTS} being gone: "
                "restore it, or choose another folder"
            )
        configs.write(config, folder / CONFIG)
        write_json(folder / "environment.json", provenance.describe())
        if resume:
            self._remarks.append("it had saved no checkpoint: starting anew")
        return Start(0, None, False)

    def start(self, step: int, headlines: list[str]) -> None:
        self._heartbeat.beat(step, "starting")
        self._log = self._open.enter_context(MetricsLog(self._workdir, step))
        self._display = self._open.enter_context(progress.make("steps"))
        for line in (*headlines, *self._remarks):
            progress.say(self._display, line)
        self._bar = self._display.add_task(
            "training", total=self._total_steps, completed=step, note=""
        )

    def beat(self, step: int, doing: Doing) -> None:
        self._heartbeat.beat(step, doing)

    def advance(self, step: int) -> None:
        self._heartbeat.beat(step, "training")
        self._display.advance(self._bar)

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self._log.write(kind, step, values)

    def save(self, step: int, state: TrainState) -> None:
        self._heartbeat.beat(step, "saving")
        self._checkpoints.save(step, as_items(state))

    def rate(self, step: int, record: dict[str, Any], line: str) -> None:
        self._heartbeat.beat(step, "saving")
        self._checkpoints.rate(step, record["test_accuracy"])
        self._log.write("epoch", step, record)
        progress.say(self._display, line)
        self._display.update(self._bar, note=f"test {record['test_accuracy']:.2%}")

    def wait(self) -> None:
        self._checkpoints.wait()


def recorder_of(cluster: Cluster, workdir: Path, total_steps: int) -> Recorder:
    """That of this process, for ``with``."""
    return FolderRecorder(workdir, total_steps) if cluster.writes else Recorder()


def check_folder(config: Config, workdir: Path, resume: bool) -> None:
    """Raises InputError where a run cannot begin in a folder, or not go on there."""
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


def as_items(state: TrainState) -> Items:
    """What is saved of a state; the network apart, so that it can be read alone."""
    model = state.network
    training = {
        name: part
        for name, part in vars(state).items()
        if name != "average" and (state.average is not None or name not in model)
    }
    return {MODEL: model, TRAINING: training}


def as_state(items: Items) -> TrainState:
    """The state of which `as_items` made these; its own parameters stand beside a running mean."""
    model, training = items[MODEL], items[TRAINING]
    averaged = "params" in training
    return TrainState(**training, average=model) if averaged else TrainState(**training, **model)


def _restored(checkpoints: Checkpoints, like: TrainState) -> tuple[int, TrainState]:
    """The newest state that is not damaged; those after it are set aside, for new ones."""
    steps = checkpoints.steps[::-1]
    step, found, damaged = checkpoints.first_intact(
        steps, lambda step: checkpoints.restore(step, as_items(like))
    )
    for broken in damaged:
        checkpoints.set_aside(broken)
    return step, as_state(found)
