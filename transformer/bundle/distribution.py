"""Distribution of the training candidates: how many are in each bin of each field and of the score."""

from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat, model_validator

from transformer.bundle.signature import BOOLEANS, STRICT, Boolean, Number, Signature

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
        Training candidates by category, for each categorical field, and by ``true`` and ``false``.
    scores
        Training candidates by their probability of the positive class, or of the likeliest of many classes,
        given by models that were fitted without them; one count for each of `SCORE_BOUNDS`. For a regression
        there is one count for each tenth of the numbers, between `number_edges`. Empty for a model without
        probabilities.
    number_edges
        Upper edges of the first nine tenths of a regression's numbers, given by the same models.
    """

    model_config = STRICT

    rows: int = Field(ge=1)
    numbers: dict[str, NumberBins]
    categories: dict[str, dict[str, _Count]]
    scores: Annotated[tuple[_Count, ...], Field(max_length=len(SCORE_BOUNDS), strict=False)] = ()
    number_edges: Annotated[tuple[FiniteFloat, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _complete(self) -> "Distribution":
        if len(self.scores) not in {0, len(SCORE_BOUNDS)}:
            raise ValueError(f"scores must have {len(SCORE_BOUNDS)} counts, got {len(self.scores)}")
        if len(self.number_edges) not in {0, len(SCORE_BOUNDS) - 1}:
            raise ValueError(f"number_edges must be {len(SCORE_BOUNDS) - 1}, got {len(self.number_edges)}")
        if list(self.number_edges) != sorted(self.number_edges):
            raise ValueError("number_edges must be in ascending order")
        return self

    def check(self, signature: Signature) -> None:
        """Check that the bins are those of a signature's fields.

        Raises
        ------
        ValueError
            If a field is missing, is of another type, or has other categories or another range.
        """
        numbers = {field.name: field for field in signature.fields if isinstance(field, Number)}
        categories = {
            field.name: set(BOOLEANS if isinstance(field, Boolean) else field.categories)
            for field in signature.fields
            if not isinstance(field, Number)
        }
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
        for name, known in categories.items():
            if self.categories[name].keys() != known:
                raise ValueError(f"distribution of {name}: categories must be those of the signature")
