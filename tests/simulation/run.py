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

SAID = 100  # nights after which a line says how many there were


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
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that simulate at a time")
    options = parser.parse_args()
    begun = time.monotonic()
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        if options.mistakes:
            for line in pool.imap(partial(found, count=options.count), range(len(MISTAKES))):
                print(line, flush=True)
            return 0
        seeds = range(options.first, options.first + options.count)
        violations = 0
        for done, said in enumerate(pool.imap_unordered(broken, seeds, 8), 1):
            violations += bool(said)
            if said or done % SAID == 0 or done == options.count:
                seconds = time.monotonic() - begun
                rate = 60 * done / seconds
                print(f"{said}{done} nights, {violations} broken, {seconds:.0f} s, {rate:.0f} a minute", flush=True)
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
