"""Break things on purpose and print what was survived.

make chaos                                                  # every row, hours on two cores
python tests/chaos/run.py worker_kills sigterm --tries 6    # some rows, fewer tries
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from machine import describe
from rows import ROWS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="rows to run (all)")
    parser.add_argument("--tries", type=int, default=0, help="tries of each row (0 = those of the table)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    options = parser.parse_args()
    failed = 0
    print(f"{describe()}; seed {options.seed}\n\n| experiment | tries | result | seconds |\n|---|---|---|---|", flush=True)
    for name in options.rows or ROWS:
        row, tries, _ = ROWS[name]
        tries, started = options.tries or tries, time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                seen = row(tries, options.seed, Path(folder))
            except Exception as error:
                traceback.print_exc()
                seen, failed = f"FAILED: {type(error).__name__}: {error}".replace("\n", " ")[:500], failed + 1
        print(f"| {name} | {tries} | {seen} | {time.monotonic() - started:.0f} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
