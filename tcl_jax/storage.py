"""Orbax, used by one process of several as if it were alone."""

import jax
import orbax.checkpoint as ocp


def of_this_process() -> ocp.options.MultiprocessingOptions:
    """What orbax is told by whoever saves or reads arrays.

    By itself it would have all processes write parts of them and wait for each other, with
    collectives that run into ours where only one of them saves, or finds damage.
    """
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
    )
