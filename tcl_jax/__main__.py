"""Commands about runs: `python -m tcl_jax status RUN …`, `python -m tcl_jax inspect RUN`."""

from tcl_jax.cli.terminal import ends_at_ctrl_c, reported_at_exit

with ends_at_ctrl_c():  # these take seconds
    import sys
    from dataclasses import dataclass
    from pathlib import Path
    from typing import Annotated

    import tyro

    from tcl_jax.cli.options import check_options
    from tcl_jax.errors import InputError
    from tcl_jax.training import heartbeat


@dataclass(frozen=True)
class Status:
    """Tell of each training whether it goes on, ended, failed, died or hangs.

    Exits with 1 where one failed, died or hangs.
    """

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)"),
    ]
    """Folders of runs."""
    patience: float = heartbeat.PATIENCE
    """Seconds without a sign of life after which a training is taken to hang."""


def status(arguments: list[str]) -> int:
    o = check_options(Status, arguments=arguments, prog="python -m tcl_jax status")
    if not o.runs:
        raise InputError("RUN is missing: name the folder of at least one run")
    if not o.patience > 0:
        raise InputError(f"--patience must be above 0 seconds, got {o.patience:g}")
    well, untold = True, []
    for run in o.runs:
        try:
            sentence, good = heartbeat.state(run, o.patience)
        except InputError as error:  # told last, for the others are asked for too
            untold.append(str(error))
            continue
        print(f"{run}: {sentence}")
        well &= good
    if untold:
        raise InputError("; ".join(untold))
    return 0 if well else 1


def inspect(arguments: list[str]) -> int:
    from tcl_jax.cli import inspect  # what it needs takes seconds

    return inspect.main(arguments)


COMMANDS = {
    "status": (status, "whether trainings go on, have ended, failed, died or hang"),
    "inspect": (inspect, "spikes and potentials of single images, and a page of the run"),
}


def main() -> int:
    name, *arguments = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        print("usage: python -m tcl_jax COMMAND RUN [RUN ...]\n\ncommands:")
        for command, (_, told) in COMMANDS.items():
            print(f"  {command}  {told}")
        print("\npython -m tcl_jax COMMAND --help lists a command's options.")
        return 0
    if name not in COMMANDS:
        got = f", got {name!r}" if name else ""
        raise InputError(f"name a command, one of {', '.join(COMMANDS)}{got}")
    return COMMANDS[name][0](arguments)


if __name__ == "__main__":
    with reported_at_exit():
        sys.exit(main())
