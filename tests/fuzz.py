"""Convert and simulate networks drawn at random until time is up: `python tests/fuzz.py --help`.

What the test of random networks does, with seeds that are new each time.
"""

import argparse
import secrets
import sys
import time

import hypothesis
import jax
from test_random_networks import SEEDS, check, check_operations, networks

ROUND = 50
"""Networks of one seed; the programs compiled for them are then forgotten, or memory runs out."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="only the networks of this one, as was printed")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    drawn = 0

    def counted(ops: object, seed: int) -> None:
        nonlocal drawn
        drawn += 1
        check(ops, seed)
        check_operations(ops, seed)

    while time.monotonic() < ends:
        seed = secrets.randbits(32) if options.seed is None else options.seed
        print(f"seed {seed}, {drawn:,} networks so far", flush=True)
        how = hypothesis.settings(
            max_examples=ROUND, derandomize=False, database=None, deadline=None
        )
        how(hypothesis.seed(seed)(hypothesis.given(networks(), SEEDS)(counted)))()
        jax.clear_caches()
        if options.seed is not None:
            break
    print(f"{drawn:,} networks, none converted or simulated otherwise than NumPy does")
    return 0


if __name__ == "__main__":
    sys.exit(main())
