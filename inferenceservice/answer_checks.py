"""Checks of a service's answers against the reference rows of the version that each answer names."""

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from inferenceservice.rollout_target import Canary, RolloutTarget, Scores, TargetError
from transformer.bundle.candidates import Rows
from transformer.bundle.format import UNVERIFIED, Bundle, Version
from transformer.bundle.signature import Value
from transformer.bundle.target import AnswerScore
from transformer.bundle.validation import validate
from transformer.errors import InvalidCandidates

#: Answers in a row that must come from the new version before it counts as serving.
MIN_ANSWERS = 20
#: Seconds until the new version serves, or until both versions of a canary have answered.
TIMEOUT_S = 120.0
#: Seconds for which a model that the new transformer does not recognise may still answer. Connections are
#: renewed after at most 6 s, and a terminating pod serves until its preStop pause of 10 s is over.
UNVERIFIED_GRACE_S = 20.0
#: Seconds for which requests may fail before the new version serves.
CONNECTING_S = 5.0
#: Accepted probability that a canary which does get traffic gives none of the answers.
MISS_PROBABILITY = 1e-6
_POLL_S = 0.2


class WrongAnswer(TargetError):
    """An answer that differs from the reference rows of its version, or that names an unexpected version."""


class ReferenceRequest:
    """One request with the reference rows of several versions, limited to the rows that all of them accept.

    The expected scores of a version are known for its own rows only; its scores for the rows of the others
    are not compared.

    Parameters
    ----------
    row
        Index of the one row to send for each version, modulo its number of rows; None for all rows.
    """

    def __init__(self, versions: Sequence[Version], row: int | None = None) -> None:
        self.candidates: list[dict[str, Any]] = []
        self._expected: dict[str, dict[int, AnswerScore]] = {version.version: {} for version in versions}
        self._targets = {version.version: version.target for version in versions}
        for version in versions:
            rows = list(zip(version.reference.candidates, version.reference.answers, strict=True))
            for candidate, score in rows if row is None else [rows[row % len(rows)]]:
                if all(_accepts(one, candidate) for one in versions):
                    self._expected[version.version][len(self.candidates)] = score
                    self.candidates.append(dict(candidate))

    @property
    def unchecked_versions(self) -> list[str]:
        """Versions without a row of their own in the request."""
        return [version for version, expected in self._expected.items() if not expected]

    def check(self, scores: Scores) -> None:
        """Compare an answer with the reference rows of the version that it names.

        Raises
        ------
        WrongAnswer
            If it differs from them, or names another version.
        """
        if scores.version not in self._expected:
            raise WrongAnswer(_unexpected_version(scores.version, " or ".join(self._expected)))
        given = scores.answers
        if len(given) != len(self.candidates):
            raise WrongAnswer(
                f"{scores.version} returned {len(given)} scores for {len(self.candidates)} candidates"
            )
        expected = self._expected[scores.version]
        target = self._targets[scores.version]
        if not target.same_answers([given[row] for row in expected], list(expected.values())):
            raise WrongAnswer(f"{scores.version} scores its reference rows differently from its bundle")


async def wait_until_serving(target: RolloutTarget, bundle: Bundle) -> None:
    """Wait until a version gives all answers, and check them against its bundle.

    Raises
    ------
    TargetError
        If it does not give all answers in time, or gives a wrong one.
    """
    one_row, all_rows = ReferenceRequest([bundle], row=0), ReferenceRequest([bundle])
    start = _now()
    in_a_row = 0
    while in_a_row < MIN_ANSWERS:
        # Monitoring counts these rows as candidates: all of them in every request would look like drift.
        request = all_rows if in_a_row == MIN_ANSWERS - 1 else one_row
        try:
            scores = await target.score(request.candidates, bundle.name)
        except TargetError:
            # After a stopped predictor is replaced, the transformer needs a moment to connect.
            if _now() - start > CONNECTING_S:
                raise
        else:
            if scores.version == bundle.version:
                request.check(scores)
                in_a_row += 1
                continue
            waited = _now() - start
            if scores.version == UNVERIFIED and waited > UNVERIFIED_GRACE_S:
                raise WrongAnswer(_unexpected_version(scores.version, bundle.version))
            if waited > TIMEOUT_S:
                raise TargetError(_unexpected_version(scores.version, bundle.version))
        in_a_row = 0
        await asyncio.sleep(_POLL_S)


async def check_canary_answers(
    target: RolloutTarget, canary: Canary, bundle: Bundle, stable: Version
) -> list[str]:
    """Send requests until the canary and the stable version have both answered, and check every answer.

    Returns
    -------
    Versions whose answers were not compared, because the other version accepts none of their reference rows.

    Raises
    ------
    TargetError
        If one of the two gives no answer in time, or if any answer is wrong or names a third version.
    """
    versions = [bundle, stable]
    all_rows = ReferenceRequest(versions)
    if not all_rows.candidates:
        return all_rows.unchecked_versions
    # Monitoring counts these rows as candidates: all of them in every request would look like drift.
    longest = max(len(version.reference.candidates) for version in versions)
    single = [ReferenceRequest(versions, row) for row in range(longest)]
    unchecked = all_rows.unchecked_versions
    requests = cycle([one for one in single if one.unchecked_versions == unchecked] or [all_rows])
    percents = {bundle.version: canary.percent, stable.version: 100 - canary.percent}
    enough = requests_to_observe(min(percents.values()))
    answered: Counter[str] = Counter()
    start = _now()
    while (silent := _silent_version(answered, percents)) or answered.total() < MIN_ANSWERS:
        waited = _now() - start
        if silent and (answered.total() >= enough or waited > TIMEOUT_S):
            raise TargetError(
                f"{silent} gave 0 of {answered.total()} answers within {waited:.0f} s, expected about "
                f"{percents[silent]} % of them"
            )
        request = next(requests)
        scores = await target.score(request.candidates, bundle.name)
        request.check(scores)
        answered[scores.version] += 1
    return unchecked


def requests_to_observe(percent: int) -> int:
    """Return the number of requests of which a version with this share of the traffic answers at least one.

    The probability that it answers none is `MISS_PROBABILITY`. The share is squared: a
    version whose pods are still starting or busy gets less traffic than the spec gives it.
    """
    return math.ceil(math.log(MISS_PROBABILITY) / math.log1p(-((percent / 100) ** 2)))


def _silent_version(answered: Counter[str], percents: Mapping[str, int]) -> str | None:
    return next((version for version in percents if not answered[version]), None)


def _unexpected_version(version: str, expected: str) -> str:
    if version != UNVERIFIED:
        return f"{version} answers instead of {expected}"
    return (
        f"a model that no bundle describes (`{UNVERIFIED}`) answers instead of {expected}; check that the "
        "predictor loads the model file that was trained with the bundle"
    )


def _accepts(version: Version, candidate: dict[str, Value]) -> bool:
    """Return True if a candidate is valid for a version, so that its encoder can express it."""
    try:
        validate(Rows([candidate], "reference"), version.signature)
    except InvalidCandidates:
        return False
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()
