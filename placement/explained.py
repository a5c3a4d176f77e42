"""A candidate with its explanation, as the command `placement explain` and its page show it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from placement.client import Candidate
from transformer.bundle.classes import class_name


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
    def answer(self) -> str:
        """The answer: yes or no, a class, or a number."""
        answer = self.explanation[self.output]
        if isinstance(answer, bool):
            return "yes" if answer else "no"
        return f"{answer:g}" if isinstance(answer, float) else str(answer)

    @property
    def is_negative(self) -> bool:
        """True for an answer that changes may turn."""
        return self.explanation[self.output] is False

    @property
    def score_name(self) -> str:
        """Name of the score that the contributions add up to."""
        return "probability" if len(self._probabilities) else "number" if self._is_number else "score"

    @property
    def explained(self) -> str:
        """Description of that score for the axis of a chart."""
        if f"{self.output}_probabilities" in self.explanation:
            return f"probability of {self.output} = {self.answer}"
        return self.output if self._is_number else f"{self.score_name} of {self.output}"

    @property
    def score(self) -> float:
        """The score that the baseline and all contributions add up to."""
        for value in self._probabilities:
            if isinstance(value, Mapping):
                return float(value[class_name(self.explanation[self.output])])
            return float(value)
        return float(self.explanation[self.output]) if self._is_number else float(not self.is_negative)

    @property
    def _is_number(self) -> bool:
        return isinstance(self.explanation[self.output], float)

    @property
    def _probabilities(self) -> list[Any]:
        names = (f"{self.output}_probability", f"{self.output}_probabilities")
        return [self.explanation[name] for name in names if name in self.explanation]

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
