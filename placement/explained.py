"""A candidate with its explanation, as the command `placement explain` and its page show it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from placement.client import Candidate


@dataclass(frozen=True, slots=True)
class Explained:
    """A candidate and its explanation, as V1 gives it.

    Attributes
    ----------
    number
        Number of the candidate in its file, from 1.
    """

    number: int
    candidate: Candidate
    explanation: Mapping[str, Any]
    version: str

    @property
    def output(self) -> str:
        """Name of the model's output."""
        return next(iter(self.explanation))

    @property
    def positive(self) -> bool:
        """The decision."""
        return bool(self.explanation[self.output])

    @property
    def probability(self) -> float:
        """The probability of the positive class."""
        return float(self.explanation[f"{self.output}_probability"])

    @property
    def contributions(self) -> list[tuple[str, float]]:
        """Each field with its value, and its contribution; the largest first."""
        by_field: Mapping[str, float] = self.explanation["contributions"]
        ranked = sorted(by_field.items(), key=lambda item: -abs(item[1]))
        return [(self._with_value(name), value) for name, value in ranked]

    @property
    def changes(self) -> list[str]:
        """Changes that turn a negative answer."""
        return [
            " and ".join(f"{name} {self.candidate.get(name, '')} → {new}" for name, new in one.items())
            for one in self.explanation.get("changes", [])
        ]

    def _with_value(self, name: str) -> str:
        """Return a field with the candidate's value; without one, the field has its default."""
        value = self.candidate.get(name)
        return name if value is None else f"{name} = {value}"
