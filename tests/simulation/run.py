"""Simulated nights by hand, on all CPUs.

python tests/simulation/run.py --count 10000     # what breaks is printed with the fewest faults that break it
python tests/simulation/run.py --mistakes        # which night finds each of the mistakes that are put into the product
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where conftest.py is

from faults import faults
from mistakes import MISTAKES
from shrinking import shrunk
from simulated_night import Violation, run_night


def broken(seed: int) -> str:
    """What does not hold in a night; nothing where all does."""
    try:
        run_night(seed, faults(seed))
    except Violation as violation:
        return f"seed {seed}: {violation}\n" + "".join(f"    {fault}\n" for fault in shrunk(seed, faults(seed)))
    return ""


def found(place: int, count: int) -> str:
    """By which seed a mistake is found."""
    mistake, begun = list(MISTAKES)[place], time.monotonic()
    for seed in range(count):
        try:
            run_night(seed, faults(seed), plant=mistake)
        except Violation as violation:
            said = str(violation).splitlines()[0][:100]
            return f"{mistake.__name__}: seed {seed}, after {time.monotonic() - begun:.0f} s: {said}"
    return f"{mistake.__name__}: not within {count} seeds"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="seed of the first night")
    parser.add_argument("--count", type=int, default=10_000, help="nights, at most")
    parser.add_argument("--mistakes", action="store_true", help="put mistakes into the product")
    options = parser.parse_args()
    begun = time.monotonic()
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        if options.mistakes:
            for line in pool.imap(partial(found, count=options.count), range(len(MISTAKES))):
                print(line, flush=True)
            return 0
        seeds = range(options.first, options.first + options.count)
        violations = list(filter(None, pool.imap_unordered(broken, seeds, 8)))
    print("\n".join([*violations, f"{options.count} nights, {len(violations)} broken, {time.monotonic() - begun:.0f} s"]))
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
