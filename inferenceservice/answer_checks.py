"""What a service answers, held against the reference rows of the version that each answer claims."""

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from inferenceservice.rollout_target import Canary, RolloutTarget, Scored, TargetError
from transformer.bundle.candidates import Rows
from transformer.bundle.format import REFERENCE_TOLERANCE, Bundle, Version
from transformer.bundle.validation import validate
from transformer.errors import InvalidCandidates

#: What a transformer calls a model that no bundle describes. Its own constant would import KServe's SDK: 2 s.
UNVERIFIED = "unverified"
#: So many answers in a row must come from the new version before it is said to serve.
ANSWERS = 20
#: Seconds until they do, or until both sides of a canary have answered.
TIMEOUT_S = 120.0
#: Seconds for which a model that the new transformer does not know may still answer: connections are renewed
#: after at most 6 s, and a pod that leaves has left after its preStop pause of 10 s.
LEAVING_S = 20.0
#: Probability to call a canary missing that is there.
MISSED = 1e-6
_POLL_S = 0.2


class WrongAnswer(TargetError):
    """An answer that the version that it claims would not give, or that claims none."""


class Expected:
    """Reference rows of some versions in one request, as far as all of these versions take them.

    Each version's scores are known for its own rows; those of the others are passed over.
    """

    def __init__(self, versions: Sequence[Version]) -> None:
        self.candidates: list[dict[str, Any]] = []
        self._scores: dict[str, dict[int, float]] = {version.version: {} for version in versions}
        for version in versions:
            rows = zip(version.reference.candidates, version.reference.probabilities, strict=True)
            for candidate, score in rows:
                if all(_takes(one, candidate) for one in versions):
                    self._scores[version.version][len(self.candidates)] = score
                    self.candidates.append(dict(candidate))

    @property
    def unknown(self) -> list[str]:
        """Versions none of whose own rows is among them."""
        return [version for version, scores in self._scores.items() if not scores]

    def hold(self, scored: Scored) -> None:
        """Compare an answer with what the version that it claims gives.

        Raises
        ------
        WrongAnswer
            If it is another one, or of another version.
        """
        if scored.version not in self._scores:
            raise WrongAnswer(_claims(scored.version, " or ".join(self._scores)))
        known = self._scores[scored.version]
        given = scored.probabilities
        if len(given) != len(self.candidates):
            raise WrongAnswer(
                f"{scored.version} gives {len(given)} scores to {len(self.candidates)} candidates"
            )
        # NaN is nowhere near.
        if not all(abs(given[row] - score) <= REFERENCE_TOLERANCE for row, score in known.items()):
            raise WrongAnswer(f"{scored.version} gives its reference rows other scores than its bundle says")


async def serves(target: RolloutTarget, bundle: Bundle) -> None:
    """Wait until a version answers everything, as its bundle says.

    Raises
    ------
    TargetError
        If it does not answer in time, or not as its bundle says.
    """
    expected = Expected([bundle])
    start = _now()
    in_a_row = 0
    while in_a_row < ANSWERS:
        scored = await target.score(expected.candidates, bundle.name)
        if scored.version == bundle.version:
            expected.hold(scored)
            in_a_row += 1
            continue
        waited = _now() - start
        if scored.version == UNVERIFIED and waited > LEAVING_S:
            raise WrongAnswer(_claims(scored.version, bundle.version))
        if waited > TIMEOUT_S:
            raise TargetError(_claims(scored.version, bundle.version))
        in_a_row = 0
        await asyncio.sleep(_POLL_S)


async def divided(target: RolloutTarget, canary: Canary, bundle: Bundle, stable: Version) -> list[str]:
    """Ask until a canary and the version beside it have both answered, each as its bundle says.

    Returns
    -------
    Versions whose answers could not be compared, because the other one takes none of their reference rows.

    Raises
    ------
    TargetError
        If one of the two does not answer in time, if any answer is not of one of them, or is a wrong one.
    """
    expected = Expected([bundle, stable])
    if not expected.candidates:
        return expected.unknown
    shares = {bundle.version: canary.percent, stable.version: 100 - canary.percent}
    enough = requests_to_meet(min(shares.values()))
    answered: Counter[str] = Counter()
    start = _now()
    while (missing := _missing(answered, shares)) or answered.total() < ANSWERS:
        waited = _now() - start
        if missing and (answered.total() >= enough or waited > TIMEOUT_S):
            raise TargetError(
                f"{missing} gave none of {answered.total()} answers within {waited:.0f} s, and should give "
                f"{shares[missing]} % of them"
            )
        scored = await target.score(expected.candidates, bundle.name)
        expected.hold(scored)
        answered[scored.version] += 1
    return expected.unknown


def requests_to_meet(percent: int) -> int:
    """How many requests miss a version that has a part of the traffic with a probability of `MISSED`.

    The square of its part is reckoned with: a version whose pods are still starting or busy gets less than
    what the spec gives it.
    """
    return math.ceil(math.log(MISSED) / math.log1p(-((percent / 100) ** 2)))


def _missing(answered: Counter[str], shares: Mapping[str, int]) -> str | None:
    return next((version for version in shares if not answered[version]), None)


def _claims(version: str, expected: str) -> str:
    if version != UNVERIFIED:
        return f"{version} answers instead of {expected}"
    return (
        f"a model answers that no bundle describes (`{UNVERIFIED}`) instead of {expected}; is the file that "
        "the predictor loads the one that was trained?"
    )


def _takes(version: Version, candidate: dict[str, str | float]) -> bool:
    """Whether a candidate is valid for a version, so that it can be expressed in its encoding."""
    signature = version.signature
    try:
        validate(Rows([candidate], "reference"), signature)
    except InvalidCandidates:
        return False
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()
