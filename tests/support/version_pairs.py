"""Pairs of an old and a new version. Each pair differs in another way that can lead to wrong answers."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tests.support.sklearn_reference import SklearnReference, vectorizer_of
from training.candidates import PLACEMENT, Candidate, Task
from training.data import Dataset
from training.generator import generate
from transformer.bundle.candidates import Rows
from transformer.bundle.format import load_bundle
from transformer.bundle.signature import Category, Number, Signature
from transformer.bundle.validation import validate
from transformer.errors import InvalidCandidates

ROWS = 400
ESTIMATOR = "forest-50"
#: Seeds of the data: the old version's, the new one's, the candidates', unknown models'.
OLD, NEW, CANDIDATES, UNKNOWN = 0, 1, 9, (5, 6)
#: Maximum number of candidates of a pair.
MOST = 300
#: File of a pair's candidates, in the storage of its new version.
CANDIDATES_FILE = "candidates.json"
#: Scores that differ by less do not tell versions apart.
TOLD_APART = 1e-6


@dataclass(frozen=True)
class VersionPair:
    """Two versions of one model, the new one trained with the old one as its previous.

    Attributes
    ----------
    candidates
        Candidates that both versions accept, and that get different scores from them.
    new_only_candidates
        Candidates that only the new version accepts.
    """

    name: str
    old: Path
    new: Path
    candidates: list[dict[str, Any]]
    new_only_candidates: list[dict[str, Any]]

    @classmethod
    def read(cls, name: str, old: Path, storage: Path) -> "VersionPair":
        """Read a pair whose new version `train_new` has written."""
        candidates = json.loads((storage / CANDIDATES_FILE).read_text())
        return cls(name, old, storage / "placement" / "v2", **candidates)

    @cached_property
    def references(self) -> dict[str, SklearnReference]:
        """Return scikit-learn's reference of each version by its name."""
        return {one.bundle.version: one for one in map(SklearnReference, (self.old, self.new))}

    @property
    def same_encoding(self) -> bool:
        """Return True if both versions have the same encoding, so the old bundle serves the new model."""
        old, new = self.references.values()
        return old.bundle.vectorizer == new.bundle.vectorizer

    @cached_property
    def unknown_models(self) -> list[Path]:
        """Train two models with the new version's encoding that no bundle knows."""
        return [
            _train(PAIRS[self.name](seed), self.new.parent, version=f"unknown-{seed}") for seed in UNKNOWN
        ]


def changed(task: Task, dataset: Dataset, change: Callable[[Candidate, random.Random], Candidate]) -> Dataset:
    """Return the dataset for another task, with each candidate changed."""
    dice = random.Random(0)
    return replace(dataset, task=task, candidates=[change(dict(one), dice) for one in dataset.candidates])


def with_field(task: Task, field: Number | Category) -> Task:
    """Return the task with a field replaced or added."""
    fields = {one.name: one for one in task.signature.fields} | {field.name: field}
    return task.model_copy(update={"signature": Signature(fields=tuple(fields.values()))})


def retrained(seed: int) -> Dataset:
    """Keep the encoding, and train with other data."""
    return generate(ROWS, seed)


def category_added(seed: int) -> Dataset:
    """Add a category: the encoding gets one more column."""
    task = with_field(
        PLACEMENT, Category(name="hsc_s", categories=("Science", "Commerce", "Arts", "Vocational"))
    )

    def change(one: Candidate, dice: random.Random) -> Candidate:
        return {**one, "hsc_s": "Vocational"} if dice.random() < 0.1 else one

    return changed(task, generate(ROWS, seed), change)


def category_renamed(seed: int) -> Dataset:
    """Rename Arts to Humanities: the width stays, but Commerce gets the column of Arts. Nothing crashes."""
    task = with_field(PLACEMENT, Category(name="hsc_s", categories=("Science", "Commerce", "Humanities")))

    def change(one: Candidate, _: random.Random) -> Candidate:
        return {**one, "hsc_s": "Humanities"} if one["hsc_s"] == "Arts" else one

    return changed(task, generate(ROWS, seed), change)


def field_added(seed: int) -> Dataset:
    """Add a number with a default in the middle of the columns, and widen another number's range."""
    task = with_field(PLACEMENT, Number(name="gap_years", minimum=0, maximum=10, default=0))
    task = with_field(task, Number(name="etest_p", minimum=0, maximum=120))

    def change(one: Candidate, dice: random.Random) -> Candidate:
        wider = {"etest_p": 110.0} if dice.random() < 0.1 else {}
        return {**one, "gap_years": float(dice.randint(0, 3)), **wider}

    return changed(task, generate(ROWS, seed), change)


PAIRS: dict[str, Callable[[int], Dataset]] = {
    make.__name__: make for make in (retrained, category_added, category_renamed, field_added)
}


def make_pair(name: str, storage: Path) -> VersionPair:
    """Train both versions of a pair; the old version is the same for all pairs of a storage."""
    old = storage / "old" / "placement" / "v1"
    if not old.exists():
        train_old(storage / "old")
    train_new(name, old, storage / name)
    return VersionPair.read(name, old, storage / name)


def train_single(storage: Path) -> None:
    """Train a version that belongs to no pair."""
    _train(generate(500), storage)


def train_old(storage: Path) -> None:
    """Train the old version of all pairs."""
    _train(generate(ROWS, OLD), storage)


def train_new(name: str, old: Path, storage: Path) -> None:
    """Train the new version of a pair, and write its candidates beside it."""
    data = PAIRS[name](NEW)
    new = _train(data, storage, previous=str(old))
    old_signature, new_signature = load_bundle(old).signature, load_bundle(new).signature
    offered = generate(2 * ROWS, CANDIDATES).candidates + data.candidates
    taken = [(one, accepts(old_signature, one)) for one in offered if accepts(new_signature, one)]
    both = [one for one, by_old in taken if by_old]
    content = {
        "candidates": most_telling(both, SklearnReference(old), SklearnReference(new)),
        "new_only_candidates": [one for one, by_old in taken if not by_old],
    }
    (storage / CANDIDATES_FILE).write_text(json.dumps(content))


def _train(data: Dataset, storage: Path, *, previous: str | None = None, version: str | None = None) -> Path:
    # Tests that find their versions in the cache do without this import, which takes a second.
    from training.train import train

    trained = train(data, storage=storage, estimator=ESTIMATOR, previous=previous, version=version)
    return Path(trained.uri)


def accepts(signature: Signature, candidate: Candidate) -> bool:
    """Return True if a candidate is valid for a signature."""
    try:
        validate(Rows([candidate], "candidates"), signature)
    except InvalidCandidates:
        return False
    return True


def most_telling(
    candidates: list[dict[str, Any]], old: SklearnReference, new: SklearnReference
) -> list[dict[str, Any]]:
    """Return the candidates whose scores tell the versions apart.

    Candidates whose scores also tell the encodings apart come first. Others would hide a wrong answer: two
    forests give 1.0 to the same fifth of all candidates.
    """
    by_old, by_new = (np.array(version.probabilities(candidates)) for version in (old, new))
    told = differ(by_old, by_new)
    misread_too = differ(by_old, misread(old, new, candidates)) & differ(
        by_new, misread(new, old, candidates)
    )
    telling = sorted(np.flatnonzero(told).tolist(), key=lambda number: not misread_too[number])
    return [candidates[number] for number in telling[:MOST]]


def misread(
    model: SklearnReference, encoding: SklearnReference, candidates: Sequence[dict[str, Any]]
) -> npt.NDArray[np.float64]:
    """Return a model's scores of candidates in another version's encoding; NaN if it refuses the width."""
    rows = vectorizer_of(encoding.bundle).transform(candidates)
    names = model.model.feature_names_in_
    if rows.shape[1] != len(names):
        return np.full(len(candidates), np.nan)
    scores: npt.NDArray[np.float64] = model.model.predict_proba(pd.DataFrame(rows, columns=names))
    return scores[:, model.bundle.target.positive_column]


def differ(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return where two scores differ enough; False where one is NaN."""
    return np.abs(one - other) > TOLD_APART
