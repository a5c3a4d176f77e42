"""Distribution of the training candidates: how many are in each bin of each field and of the score."""

from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat, model_validator

from transformer.bundle.signature import STRICT, Category, Number, Signature

#: Upper bounds of the score's bins, each included.
SCORE_BOUNDS = tuple(number / 10 for number in range(1, 11))

_Count = Annotated[int, Field(ge=0)]
_Counts = Annotated[tuple[_Count, ...], Field(min_length=1, strict=False)]


class NumberBins(BaseModel):
    """Bins of a numeric field. A bin contains its lower edge; the last one contains both edges.

    Attributes
    ----------
    edges
        The bins' edges, from the signature's minimum to its maximum; without one, from or to where the
        training candidates end.
    counts
        Training candidates in each bin.
    """

    model_config = STRICT

    edges: Annotated[tuple[FiniteFloat, ...], Field(min_length=2, strict=False)]
    counts: _Counts

    @model_validator(mode="after")
    def _coherent(self) -> "NumberBins":
        if len(self.counts) != len(self.edges) - 1:
            raise ValueError(
                f"{len(self.edges)} edges need {len(self.edges) - 1} counts, got {len(self.counts)}"
            )
        if any(low > high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must be in ascending order")
        return self


class Distribution(BaseModel):
    """Training candidates by bin.

    Attributes
    ----------
    rows
        Number of training candidates.
    numbers
        Bins of each numeric field.
    categories
        Training candidates by category, for each categorical field.
    scores
        Training candidates by their probability of the positive class, given by models that were fitted
        without them; one count for each of `SCORE_BOUNDS`.
    """

    model_config = STRICT

    rows: int = Field(ge=1)
    numbers: dict[str, NumberBins]
    categories: dict[str, dict[str, _Count]]
    scores: Annotated[_Counts, Field(min_length=len(SCORE_BOUNDS), max_length=len(SCORE_BOUNDS))]

    def check(self, signature: Signature) -> None:
        """Check that the bins are those of a signature's fields.

        Raises
        ------
        ValueError
            If a field is missing, is of another type, or has other categories or another range.
        """
        numbers = {field.name: field for field in signature.fields if isinstance(field, Number)}
        categories = {field.name: field for field in signature.fields if isinstance(field, Category)}
        if self.numbers.keys() != numbers.keys() or self.categories.keys() != categories.keys():
            differing = (numbers.keys() ^ self.numbers.keys()) | (categories.keys() ^ self.categories.keys())
            raise ValueError(f"distribution and signature differ in: {', '.join(sorted(differing))}")
        for name, number in numbers.items():
            ends = self.numbers[name].edges[0], self.numbers[name].edges[-1]
            for end, limit, verb in zip(
                ends, (number.minimum, number.maximum), ("begin", "end"), strict=True
            ):
                if limit is not None and end != limit:
                    raise ValueError(f"distribution of {name}: edges must {verb} at {limit:g}, got {end:g}")
        for name, category in categories.items():
            if self.categories[name].keys() != set(category.categories):
                raise ValueError(f"distribution of {name}: categories must be those of the signature")
