"""Batches made before they are asked for, in threads or worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from typing import Any

import grain
from absl import flags

from tcl_jax.errors import InputError

_READ_AHEAD = 2


def ahead(
    batch: Callable[[int], Any], steps: range, threads: int, workers: int
) -> Generator[Any, None, None]:
    """Make batches ahead of their use.

    Args:
        batch: Makes that of a step.
        steps: All of them, in order.
        threads: Batches that a process makes at the same time.
        workers: Processes that make them, each its share; 0 is this one.

    Returns:
        The batches; reading ahead ends when it is closed or collected.

    Raises:
        InputError: A worker process was killed.
    """
    batches = (
        grain.MapDataset.range(steps.start, steps.stop)
        .map(batch)
        .to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=threads + _READ_AHEAD))
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags
        options = grain.MultiprocessingOptions(workers, _READ_AHEAD)
        batches = batches.mp_prefetch(options, worker_init_fn=_end_with_parent)
    iterator = iter(batches)
    try:
        with _deaf_children() if workers else nullcontext():
            first = next(iterator)
        yield first
        yield from iterator
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise InputError(
            "A worker process that makes batches was killed, as systems do that run out of memory: "
            f"use fewer workers than {workers}."
        ) from error
    finally:
        iterator.close()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes begun within hear nothing of SIGINT and SIGTERM, which come to a whole group."""
    resource_tracker.ensure_running()  # begun within, it would have this thread hear them again
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def _end_with_parent(number: int, count: int) -> None:
    """Have this worker process end when that which it works for does, be it killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)  # the main thread waits for room in a queue that nobody reads

    threading.Thread(target=end, daemon=True).start()
