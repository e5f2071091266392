"""``python -m tests.simulation``: simulate seeds, and print those that fail.

A failing seed takes the same course every time. With ``--trace`` all that happened is printed.
"""

import argparse
import os
import sys
import time

from tests.simulation.bugs import BUGS, bug
from tests.simulation.simulate import Simulated, simulate

SHOWN = 40  # lines of the trace of a failure


def main(arguments: list[str]) -> int:
    """Simulate; return 0 when all seeds passed, 1 when one failed."""
    options = _parsed(arguments)
    seeds: range = options.seeds
    started = time.perf_counter()
    done = faults = executions = failed = 0
    for seed in seeds:
        with bug(options.bug):
            simulated = simulate(seed)
        done += 1
        faults += len(simulated.faults)
        executions += simulated.executions
        failed += simulated.error is not None
        if simulated.error is not None or options.trace:
            _show(simulated, whole=options.trace)
        if failed >= options.max_failures:
            break
    seconds = time.perf_counter() - started
    print(f"{done} seeds, {executions} executions, {faults} faults, {failed} failed, in {seconds:.1f} s")
    return 1 if failed else 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", nargs="?", type=_seeds, default="0:200", help="one seed, or FIRST:END (%(default)s)")
    parser.add_argument("--trace", action="store_true", help="print all that happened")
    parser.add_argument("--bug", choices=BUGS, help="bring a known bug back, to see it found")
    parser.add_argument("--max-failures", type=int, default=1, help="stop after so many (default %(default)s)")
    return parser.parse_args(arguments)


def _seeds(text: str) -> range:
    first, _, end = text.partition(":")
    if not first.isdecimal() or not (end or first).isdecimal():
        raise argparse.ArgumentTypeError(f'"{text}" is wrong: say one seed, or FIRST:END')
    return range(int(first), int(end) if end else int(first) + 1)


def _show(simulated: Simulated, *, whole: bool) -> None:
    lines = simulated.trace if whole else simulated.trace[-SHOWN:]
    print("\n".join(lines))
    print(f"seed {simulated.seed}: {simulated.seconds:.0f} virtual seconds, course {simulated.digest}")
    print("\n".join(f"  fault at {fault}" for fault in simulated.faults))
    if simulated.error is not None:
        print(f"seed {simulated.seed} FAILED: {type(simulated.error).__name__}: {simulated.error}")
        print(f"run it again: python -m tests.simulation {simulated.seed} --trace")


if __name__ == "__main__":
    if sys.flags.hash_randomization:
        # The order of sets of strings is part of a seed's course, and is fixed only when Python starts.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main(sys.argv[1:]))
