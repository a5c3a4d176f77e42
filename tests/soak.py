"""``make soak``: every situation with every pair of versions, again and again, for as long as it is told.

Exit status 1 on any wrong answer, or on a failure that the situation does not allow.
"""

import argparse
import asyncio
import functools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.coherence import SITUATIONS, Outcome, control_experiment
from tests.load import TRY_AGAIN
from tests.pairs import PAIRS, make_pair

CONTROL = "the documented transformer, canary by connection"


class Table:
    """What the situations came to, by situation and pair."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.wrong: Counter[tuple[str, str]] = Counter()
        self.try_again: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[tuple[str, str]] = Counter()

    def add(self, key: tuple[str, str], outcome: Outcome) -> None:
        """Count one run."""
        self.requests[key] += outcome.tally.requests
        self.wrong[key] += len(outcome.tally.wrong)
        self.try_again[key] += outcome.tally.failed[TRY_AGAIN]
        self.failed[key] += outcome.tally.failed.total() - outcome.tally.failed[TRY_AGAIN]

    def __str__(self) -> str:
        lines = ["| situation | versions | requests | wrong | failed | 503 |", "|---|---|---|---|---|---|"]
        for key, requests in self.requests.items():
            situation, pair = (text.replace("_", " ") for text in key)
            lines.append(
                f"| {situation} | {pair} | {requests} | {self.wrong[key]} | {self.failed[key]} "
                f"| {self.try_again[key]} |"
            )
        return "\n".join(lines)


async def soak(minutes: float, names: Sequence[str], work: Path) -> int:
    """Run until the time is over, each combination at least once; the exit status."""
    end = time.monotonic() + 60 * minutes
    pair_of = functools.cache(lambda name: make_pair(name, work / "storage"))
    table = Table()
    bad = 0
    rounds = 0
    while rounds == 0 or time.monotonic() < end:
        for name in names:
            for situation in SITUATIONS:
                if rounds and time.monotonic() > end:
                    break
                run = Path(tempfile.mkdtemp(dir=work))
                outcome = await situation(pair_of(name), run)
                print(f"{situation.__name__}, {name}: {outcome}", flush=True)
                table.add((situation.__name__, name), outcome)
                bad += len(outcome.tally.wrong) + len(outcome.unexpected)
        rounds += 1
    requests = 300
    wrong = await control_experiment(pair_of("category_renamed"), work, requests)
    print(f"\n{table}\n| *{CONTROL}* | category renamed | {requests} | **{wrong}** | 0 | 0 |")
    return 1 if bad else 0


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--only", action="append", choices=PAIRS, help="this pair of versions, not all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        return asyncio.run(soak(options.minutes, options.only or list(PAIRS), Path(work)))


if __name__ == "__main__":
    sys.exit(main())
