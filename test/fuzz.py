"""`make fuzz`: every fuzz test in rounds of new seeds until the time is over, and how many examples that were.

A failure ends it with exit code 1; pytest's output has the smallest example that Hypothesis found.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

HERE = Path(__file__).resolve().parent
FACTOR = "5"
_TEST, _PASSED = re.compile(r"^(test/\S+::.+):$"), re.compile(r"- (\d+) passing,")


def run(file: Path, seed: int) -> tuple[Counter[str], str]:
    """One round of one file: examples by test, and pytest's output if it failed."""
    command = [sys.executable, "-m", "pytest", str(file.relative_to(HERE.parent)), "-q", f"--hypothesis-seed={seed}"]
    command += ["--hypothesis-show-statistics", "--timeout=3600"]
    environ = {**os.environ, "FUZZ_FACTOR": FACTOR, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HERE.parent, env=environ, capture_output=True, text=True)
    tried: Counter[str] = Counter()
    test = ""
    for line in done.stdout.splitlines():
        if found := _TEST.match(line):
            test = found[1]
        elif found := _PASSED.search(line):
            tried[test] += int(found[1])
    return tried, done.stdout + done.stderr if done.returncode else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    files = sorted(HERE.glob("test_fuzz_*.py"))
    tried: Counter[str] = Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for seed in count(options.seed):
            for more, failure in pool.map(lambda file: run(file, seed), files):  # noqa: B023 (used at once)
                tried += more
                if failure:
                    print(failure)
                    print(f"failed with seed {seed}", file=sys.stderr)
                    return 1
            print(f"seed {seed}: {tried.total()} examples so far", flush=True)
            if time.monotonic() > end:
                break
    for test, number in sorted(tried.items()):
        print(f"{number:9d}  {test}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
