"""What every test needs: four virtual devices, and hypothesis without chance or deadlines."""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import annotations  # noqa: F401  which decides what jaxtyping checks
import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest
from cli import COMPILED, QUICKLY

# In the background SIGINT may be ignored, and so it would be by every process that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything uses a backend: the number of devices is fixed from then on, and so is how much
# LLVM does for programs most of which run once.  `make fuzz` compiles as users do.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
# Where in our code an operation was written nobody reads in a program; to write it takes 10 %.
jax.config.update("jax_traceback_in_locations_limit", 0)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY}"

# The library works under whatever promotion a user has set; what is strictest hides the least.
# Functions that stand for users' promote as most of those do: `tcl_jax.promotion.implicit`.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "tcl_jax", deadline=None, derandomize=True, database=None, max_examples=15
)
hypothesis.settings.load_profile("tcl_jax")


def pytest_configure(config: pytest.Config) -> None:
    gc.freeze()  # what is imported stays; looking through it each time takes 5 % of all tests
    gc.set_threshold(200_000, 20, 100)
    if not hasattr(config, "workerinput"):  # here, for all of xdist's workers
        os.environ[COMPILED] = tempfile.mkdtemp(prefix="tcl-jax-compiled-")
    # Without a lock, which would take longer than it saves: a program that another worker has half
    # written is compiled once more, with a warning that is let pass (pyproject.toml).
    jax.config.update("jax_compilation_cache_dir", f"{os.environ[COMPILED]}/here")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


SLOW = ("laws", "processes", "bad_inputs", "record", "resume", "end_to_end", "results", "heartbeat")
"""Files that take longest, to start with: two workers then come to their end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return SLOW.index(name) if name in SLOW else len(SLOW)

    items.sort(key=place)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[COMPILED], ignore_errors=True)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """For calls that annotations forbid, and that are to be refused in words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """The programs that have been compiled since it was emptied."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def eighths(rng) -> Callable[..., np.ndarray]:
    """Draws numbers whose sums and products, where few, are exact in float32 in whatever order."""
    return lambda *shape: (rng.integers(-8, 9, shape) / 8).astype(np.float32)


@pytest.fixture
def randomised() -> Callable[..., Any]:
    """Variables of given shapes, as after training: no statistic, scale, bias or λ is trivial."""

    def randomise(variables: Any, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        draw = {
            "kernel": lambda shape: rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape),
            "mean": lambda shape: rng.normal(0, 0.3, shape),
            "var": lambda shape: rng.uniform(0.3, 2.0, shape),
            "scale": lambda shape: rng.uniform(0.5, 1.5, shape) * rng.choice((1, 1, 1, -1), shape),
            "bias": lambda shape: rng.normal(0.1, 0.2, shape),
            "lam": lambda shape: rng.uniform(0.7, 3.0, shape),
        }

        def replace(path: Any, value: jax.Array) -> jax.Array:
            return jax.numpy.asarray(draw[path[-1].key](value.shape), value.dtype)

        return jax.tree_util.tree_map_with_path(replace, variables)

    return randomise
