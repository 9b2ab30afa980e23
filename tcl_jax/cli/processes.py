"""`--distributed`: one command, started on every host, is one program over all their devices."""

import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, NoReturn

import jax
import tyro
from jax._src import distributed

from tcl_jax.cli.compiled import keep_programs
from tcl_jax.cli.options import Whole
from tcl_jax.cluster import Cluster, cores_as_devices, everywhere
from tcl_jax.errors import InputError, first_line
from tcl_jax.topology import expect_no_tpu


@dataclass(frozen=True)
class Processes:
    """The processes that are to run as one program, each started with the same command."""

    distributed: bool = False
    """Run as one with the processes that the same command has started on other hosts: on TPU pods,
    Slurm and Open MPI they find each other, elsewhere by the three options that follow."""
    coordinator_address: Annotated[
        str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")
    ] = None
    """With --distributed: where process 0 listens, as the others reach it."""
    num_processes: Whole = None
    """With --distributed: how many there are."""
    process_id: Whole = None
    """With --distributed: which one this is, from 0."""
    join_seconds: int = 300
    """With --distributed: seconds to wait for the others at the start."""

    def __post_init__(self) -> None:
        named = {
            "coordinator_address": self.coordinator_address,
            "num_processes": self.num_processes,
            "process_id": self.process_id,
        }
        given = [name for name, value in named.items() if value is not None]
        if given and not self.distributed:
            raise InputError("is for several processes: give distributed=True, too", given[0])
        if given and len(given) < len(named):
            missing = next(name for name in named if name not in given)
            raise InputError(f"is missing: it goes with {given[0]}={named[given[0]]}", missing)
        if self.join_seconds < 1:
            raise InputError(f"must be at least 1, got {self.join_seconds}", "join_seconds")
        if self.num_processes is None or self.process_id is None:
            return
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(
                f"must be in [0, {self.num_processes}), got {self.process_id}", "process_id"
            )
        _split(self.coordinator_address or "")

    @contextlib.contextmanager
    def joined(self, batch_size: int) -> Iterator[Cluster]:
        """The devices of all processes, for ``with``; without --distributed, of this one.

        Args:
            batch_size: images at a time; without --distributed, on a CPU, as many cores as divide
                it are its devices.

        Raises:
            InputError: they cannot be joined; where another one ends within, so does this.
        """
        keep_programs()
        if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":  # so JAX marks a machine that has none
            expect_no_tpu()
        if not self.distributed:
            if batch_size > 0:  # else refused by whoever uses it
                cores_as_devices(batch_size)
            yield everywhere()
            return
        # Its handler would take the place of ours, which agree without it.
        jax.config.update("jax_enable_preemption_service", False)
        if self.process_id == 0:
            self._check_port()
        elif self.process_id is not None:
            self._reach()
        self._initialize()
        cluster = everywhere()
        if self.num_processes not in (None, cluster.processes):
            raise InputError(
                f"process 0 at {self.coordinator_address} counts {cluster.processes} processes, "
                f"and num_processes={self.num_processes}: start all with the same number"
            )
        try:
            yield cluster
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # it comes as one or the other
            lost = re.search("gloo|unavailable|coordination|heartbeat", str(error), re.IGNORECASE)
            if lost is None or isinstance(error, InputError):
                raise
            # At once, before JAX aborts this one, too.
            _end(
                "another process of this program has ended, or cannot be reached: see what it "
                f"said, and start all again, a training with --resume ({first_line(error)})"
            )

    def _check_port(self) -> None:
        """JAX would crash where the port is taken, without a word of it."""
        assert self.coordinator_address is not None
        _, port = _split(self.coordinator_address)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
        except OSError as error:
            raise InputError(
                f"process 0 cannot listen at {self.coordinator_address} "
                f"({os.strerror(error.errno or 0)}): end what listens there, or choose another port"
            ) from None

    def _reach(self) -> None:
        """Wait until process 0 listens, where JAX would name no address."""
        assert self.coordinator_address is not None
        until = time.monotonic() + self.join_seconds
        while True:
            try:
                socket.create_connection(_split(self.coordinator_address), timeout=5.0).close()
                return
            except OSError as error:
                # A host's name that there is not; one that is not known yet may be a moment later.
                unknown = isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
                if unknown or time.monotonic() > until:
                    tried = "" if unknown else f", tried for {self.join_seconds} s"
                    raise InputError(
                        f"process 0 was not found at {self.coordinator_address} "
                        f"({error.strerror or error}){tried}: start it there with the same "
                        "command, or correct the address"
                    ) from None
                time.sleep(0.2)

    def _initialize(self) -> None:
        """Join, or end the process: JAX would abort it with a stack trace."""
        late = threading.Timer(self.join_seconds, self._give_up)
        late.daemon = True
        late.start()
        try:
            jax.distributed.initialize(
                self.coordinator_address,
                self.num_processes,
                self.process_id,
                initialization_timeout=self.join_seconds + 60,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(
                f"processes cannot be joined at {self._address()} ({first_line(error)}): where no "
                "TPU pod, Slurm or Open MPI tells of them, give coordinator_address=HOST:PORT, "
                "num_processes=N and process_id=I"
            ) from error
        finally:
            late.cancel()

    def _give_up(self) -> None:
        missing = "not all processes have come" if self.process_id == 0 else "no answer came"
        _end(
            f"{missing} within {self.join_seconds} s at {self._address()}: start every process "
            "with the same command, each with its own number"
        )

    def _address(self) -> str:
        found = distributed.global_state.coordinator_address  # which JAX has found by itself
        return self.coordinator_address or found or "any address"


ALONE = Processes()
"""What runs by itself."""


def _end(sentence: str) -> NoReturn:
    """Of the process, and not by way of an exception: its threads wait for what will not come."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(2)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(f"must be HOST:PORT, got {address!r}", "coordinator_address")
    return host.strip("[]"), int(port)
