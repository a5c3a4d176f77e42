"""Pairs of versions, old and new, that differ as versions do: each tells another way to go wrong."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.truth import Truth
from training.candidates import PLACEMENT, Candidate, Task
from training.data import Dataset
from training.generator import generate
from training.train import train
from transformer.errors import InvalidCandidates
from transformer.signature import Category, Number, Signature
from transformer.v1 import from_dicts
from transformer.validation import validate

ROWS = 400
ESTIMATOR = "forest-50"


@dataclass(frozen=True)
class Pair:
    """Two versions of one model, the new one trained with the old one as its previous."""

    name: str
    old: Path
    new: Path
    #: Candidates that both versions take, so that a rollout has no reason to refuse any.
    candidates: list[dict[str, Any]]

    @property
    def truths(self) -> dict[str, Truth]:
        """What each version's model says, by the version's name."""
        return {truth.bundle.version: truth for truth in (Truth(self.old), Truth(self.new))}


def changed(task: Task, dataset: Dataset, change: Callable[[Candidate, random.Random], Candidate]) -> Dataset:
    """The dataset for another task, each candidate changed."""
    dice = random.Random(0)
    return replace(dataset, task=task, candidates=[change(dict(one), dice) for one in dataset.candidates])


def with_field(task: Task, field: Number | Category) -> Task:
    """The task with a field replaced, or added if it has none of this name."""
    fields = {one.name: one for one in task.signature.fields} | {field.name: field}
    return task.model_copy(update={"signature": Signature(fields=tuple(fields.values()))})


def retrained() -> Dataset:
    """The same encoding, other data: only the model differs."""
    return generate(ROWS, seed=1)


def category_added() -> Dataset:
    """One more stream: the encoding is one column wider."""
    task = with_field(
        PLACEMENT, Category(name="hsc_s", categories=("Science", "Commerce", "Arts", "Vocational"))
    )

    def change(one: Candidate, dice: random.Random) -> Candidate:
        return {**one, "hsc_s": "Vocational"} if dice.random() < 0.1 else one

    return changed(task, generate(ROWS, seed=2), change)


def category_renamed() -> Dataset:
    """Arts become Humanities: as wide as before, but Commerce stands where Arts stood. Nothing crashes."""
    task = with_field(PLACEMENT, Category(name="hsc_s", categories=("Science", "Commerce", "Humanities")))

    def change(one: Candidate, _: random.Random) -> Candidate:
        return {**one, "hsc_s": "Humanities"} if one["hsc_s"] == "Arts" else one

    return changed(task, generate(ROWS, seed=3), change)


def field_added() -> Dataset:
    """One more number in the middle of the columns, with a default."""
    task = with_field(PLACEMENT, Number(name="gap_years", minimum=0, maximum=10, default=0))

    def change(one: Candidate, dice: random.Random) -> Candidate:
        return {**one, "gap_years": float(dice.randint(0, 3))}

    return changed(task, generate(ROWS, seed=4), change)


PAIRS: dict[str, Callable[[], Dataset]] = {
    make.__name__: make for make in (retrained, category_added, category_renamed, field_added)
}


def make_pair(name: str, storage: Path) -> Pair:
    """Train both versions of a pair."""
    old = train(generate(ROWS, seed=0), storage=storage / name, estimator=ESTIMATOR)
    dataset = PAIRS[name]()
    new = train(dataset, storage=storage / name, estimator=ESTIMATOR, previous=old.uri)
    candidates = [
        one
        for one in generate(300, seed=9).candidates + dataset.candidates[:100]
        if all(takes(bundle.signature, one) for bundle in (old.bundle, new.bundle))
    ]
    return Pair(name, Path(old.uri), Path(new.uri), candidates)


def takes(signature: Signature, candidate: Candidate) -> bool:
    """Whether a candidate is valid for a signature."""
    try:
        validate(from_dicts([candidate], signature.names, "candidates"), signature)
    except InvalidCandidates:
        return False
    return True
