"""Data parallelism: batches split over the devices of all processes, all else on each of them."""

import os
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tcl_jax.errors import InputError
from tcl_jax.provenance import cores

_T = TypeVar("_T")

# Each holds a copy of the parameters.
_MOST_CPU_DEVICES = 16


def cores_as_devices(batch_size: int) -> None:
    """On a CPU, make a device of every core, as many as divide the batch; call before all else.

    XLA runs a convolution of few channels on one thread of its device, however many cores there
    are.  Whoever sets the number of CPU devices in the environment decides.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags:
        return
    most = min(cores(), _MOST_CPU_DEVICES)
    devices = max(n for n in range(1, most + 1) if batch_size % n == 0)
    jax.config.update("jax_num_cpu_devices", devices)


@dataclass(frozen=True)
class Cluster:
    """The devices that a program runs on, and this process among those that run it.

    All processes run the same program, and must call what communicates (`vote`, `agree`, `gather`,
    `alone`, `each`, `first`) in the same order.  With one process none of them does anything.

    Attributes:
        mesh: all devices in one row, the axis ``data``; those of a process side by side.
        process: this one's number, from 0.
        processes: how many there are.
    """

    mesh: Mesh
    process: int = 0
    processes: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes files and speaks to the terminal."""
        return self.process == 0

    @property
    def shard(self) -> tuple[int, int]:
        """This process's part of every batch, as `tcl_jax.data` takes it."""
        return self.process, self.processes

    @property
    def own(self) -> "Cluster":
        """This process and its devices alone, for what needs no others."""
        return _row([d for d in self.mesh.devices.flat if d.process_index == jax.process_index()])

    @property
    def whole(self) -> NamedSharding:
        """Of an array that is whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        """Of a batch, whose rows are laid over all devices."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def cut(self, shape: tuple[int, ...]) -> NamedSharding:
        """Of an array that is cut evenly over all devices, along the longest axis that can be.

        Where none can be, it is `whole`.
        """
        even = [axis for axis, n in enumerate(shape) if n and n % self.mesh.size == 0]
        if not even:
            return self.whole
        longest = max(even, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, "data"))

    def check_batch_size(self, batch_size: int, parts: int = 1) -> None:
        """Raises InputError where a batch, or its parts, cannot be split over the devices."""
        devices = self.mesh.size
        if batch_size % (parts * devices):
            each = f" in {parts} parts" if parts > 1 else ""
            raise InputError(
                f"a batch of {batch_size}{each} cannot be split over {devices} devices: "
                f"choose a multiple of {parts * devices}"
            )

    def put(self, batch: Any) -> Any:
        """A batch laid over all devices, of which each process gives its part (`shard`)."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.split, x), batch)

    def replicate(self, tree: Any) -> Any:
        """The same arrays on every device; every process gives all of them, and the same ones."""
        return self.place(tree, jax.tree.map(lambda _: self.whole, tree))

    def place(self, tree: Any, where: Any) -> Any:
        """Arrays on the devices.

        Args:
            tree: the arrays; every process gives all of them, and the same ones.
            where: a sharding for each, `whole` or `cut`.
        """
        if self.processes == 1:
            return jax.device_put(tree, where)
        # device_put would ask all the others of each array whether it is the same.
        return jax.tree.map(_placed, tree, where)

    def gathered(self, tree: Any) -> Any:
        """The arrays of the devices, all of them whole on each."""
        return jax.device_put(tree, self.whole)

    def to_writer(self, tree: Any) -> Any:
        """The arrays of the devices, whole, as NumPy's on the process that writes; None elsewhere.

        One after another, so that no device holds all of those that are cut.
        """
        return jax.tree.map(self._to_writer, tree)

    def _to_writer(self, array: jax.Array) -> np.ndarray | None:
        whole = array if array.is_fully_replicated else process_allgather(array, tiled=True)
        return np.asarray(whole) if self.writes else None

    def vote(self, *numbers: int) -> Any:
        """The largest that a process gives of each number: asked now, to be read later.

        Read one step late, it makes no device wait.
        """
        if self.processes == 1:
            return numbers
        each = self.mesh.size // self.processes
        return _largest(self.put(np.tile(np.asarray(numbers, np.int32), (each, 1))))

    def agree(self, number: int) -> int:
        """The largest number that a process gives, on every process."""
        return int(self.vote(number)[0])

    def gather(self, value: _T) -> list[_T]:
        """What each process gives, anything that can be pickled, in their order, on every process.

        As bytes, for JAX would round 64 bits to 32.
        """
        if self.processes == 1:
            return [value]
        content, sizes = self._pickled(value)
        rows = process_allgather(content)
        return [pickle.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)]

    def alone(self, do: Callable[[], _T]) -> _T:
        """What the process that writes does for all: its result, or its failure, is everybody's.

        Args:
            do: what to do; its result can be pickled.

        Raises:
            InputError: it failed with one, or with an error of the system.
        """
        if self.processes == 1:
            return do()
        found, error = _attempted(do) if self.writes else (None, None)
        # Not gathered, for a whole training state is given so; by bytes, of which sums are exact.
        content, sizes = self._pickled((found, error))
        content = broadcast_one_to_all(content)
        found, failed = pickle.loads(content[: sizes[0]].tobytes())
        if failed is not None:
            raise error or failed
        return cast(_T, found)

    def first(self, make: Callable[[], _T]) -> _T:
        """What every process makes, the one that writes before the others: files, for example."""
        made: list[_T] = []

        def keep() -> None:
            if not made:
                made.append(make())

        self.alone(keep)
        self.each(keep)
        return made[0]

    def each(self, do: Callable[[], _T]) -> _T:
        """What every process does for itself; where it fails on one, it fails on all.

        Raises:
            InputError: it failed with one, or with an error of the system.
        """
        if self.processes == 1:
            return do()
        found, error = _attempted(do)
        for process, failed in enumerate(self.gather(error)):
            if failed is not None:
                raise error or InputError(f"process {process} ended: {failed}")
        return cast(_T, found)

    def _pickled(self, value: Any) -> tuple[np.ndarray, np.ndarray]:
        """A value as bytes, filled up to the most that a process has, and how many each has."""
        content = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.asarray(process_allgather(np.int32(content.size)))
        return np.pad(content, (0, int(sizes.max()) - content.size)), sizes

    def check_same(self, **values: Any) -> None:
        """Raises InputError where processes have different values, which say themselves as text."""
        first, *others = self.gather({name: str(value) for name, value in values.items()})
        for process, there in enumerate(others, start=1):
            for name, value in first.items():
                if there[name] != value:
                    raise InputError(
                        f"process {process} has {name}={there[name]} and process 0 {name}={value}: "
                        "start all with the same command, and give them the same files"
                    )


def everywhere() -> Cluster:
    """All devices of all processes that `jax.distributed` has joined; without it, of this one.

    Raises:
        InputError: processes differ in their number of devices.

    >>> from tcl_jax import cluster
    >>> here = cluster.everywhere()
    >>> here.writes, here.shard, here.agree(3)
    (True, (0, 1), 3)
    """
    return over(jax.devices(), jax.process_index())


def over(devices: Sequence[jax.Device], process: int = 0) -> Cluster:
    """Devices of one or several processes, as one of these has them.

    Raises:
        InputError: processes differ in their number of devices.
    """
    # By process, which JAX does not promise, or the rows of one would not lie side by side.
    devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    each = list(Counter(d.process_index for d in devices).values())
    if len(set(each)) > 1:
        raise InputError(
            f"the processes have {each} devices, and each must have as many as any other: "
            "see to it that all are healthy, and given to one process only"
        )
    return _row(devices, process, len(each))


def here(devices: int | None = None) -> Cluster:
    """This process alone, with all of its devices or only the first of them."""
    return _row(jax.local_devices()[:devices])


def _row(devices: list[jax.Device], process: int = 0, processes: int = 1) -> Cluster:
    # Flax convolutions want Auto axes, where meshes have Explicit ones by default.
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    return Cluster(mesh, process, processes)


def _placed(array: Any, where: NamedSharding) -> jax.Array:
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def _attempted(do: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
    """What was found, or the failure that is to be known to all."""
    try:
        return do(), None
    except (InputError, OSError) as error:
        return None, error


@jax.jit
def _largest(numbers: jax.Array) -> jax.Array:
    return jnp.max(numbers, axis=0)
