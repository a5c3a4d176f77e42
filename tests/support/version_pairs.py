"""Pairs of versions, old and new, that differ as versions do: each tells another way to go wrong."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
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
from training.train import train
from transformer.bundle.candidates import Rows
from transformer.bundle.format import load_bundle
from transformer.bundle.signature import Category, Number, Signature
from transformer.bundle.validation import validate
from transformer.errors import InvalidCandidates

ROWS = 400
ESTIMATOR = "forest-50"
#: Seeds of the data: the old version's, the new one's, the candidates', unknown models'.
OLD, NEW, CANDIDATES, UNKNOWN = 0, 1, 9, (5, 6)
#: How many candidates a pair has at most.
MOST = 300
#: Scores that differ by less tell nothing apart.
TOLD_APART = 1e-6


@dataclass(frozen=True)
class VersionPair:
    """Two versions of one model, the new one trained with the old one as its previous.

    Attributes
    ----------
    candidates
        Both versions take them, so that a rollout has no reason to refuse any; and each tells by its score
        which version gave it.
    newcomers
        Candidates that only the new version takes.
    """

    name: str
    old: Path
    new: Path
    candidates: list[dict[str, Any]]
    new_only_candidates: list[dict[str, Any]]

    @classmethod
    def from_json(cls, text: str) -> "VersionPair":
        """Read a pair that `to_json` has written."""
        content = json.loads(text)
        return cls(**{**content, "old": Path(content["old"]), "new": Path(content["new"])})

    def to_json(self) -> str:
        """Write the pair for another process."""
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        return json.dumps({**content, "old": str(self.old), "new": str(self.new)})

    @cached_property
    def references(self) -> dict[str, SklearnReference]:
        """What each version's model says, by the version's name."""
        return {
            sklearn_reference.bundle.version: sklearn_reference
            for sklearn_reference in (SklearnReference(self.old), SklearnReference(self.new))
        }

    @property
    def same_encoding(self) -> bool:
        """Whether the old version's encoding is the new model's, too, which then is served as unverified."""
        old, new = self.references.values()
        return old.bundle.vectorizer == new.bundle.vectorizer

    @cached_property
    def unknown_models(self) -> list[Path]:
        """Two models with the new version's encoding that no bundle describes; trained when asked for."""
        return [
            Path(train(data, storage=self.new.parent, estimator=ESTIMATOR, version=f"unknown-{seed}").uri)
            for seed in UNKNOWN
            for data in [PAIRS[self.name](seed)]
        ]


def changed(task: Task, dataset: Dataset, change: Callable[[Candidate, random.Random], Candidate]) -> Dataset:
    """The dataset for another task, each candidate changed."""
    dice = random.Random(0)
    return replace(dataset, task=task, candidates=[change(dict(one), dice) for one in dataset.candidates])


def with_field(task: Task, field: Number | Category) -> Task:
    """The task with a field replaced, or added if it has none of this name."""
    fields = {one.name: one for one in task.signature.fields} | {field.name: field}
    return task.model_copy(update={"signature": Signature(fields=tuple(fields.values()))})


def retrained(seed: int) -> Dataset:
    """The same encoding, other data: only the model differs."""
    return generate(ROWS, seed)


def category_added(seed: int) -> Dataset:
    """One more stream: the encoding is one column wider."""
    task = with_field(
        PLACEMENT, Category(name="hsc_s", categories=("Science", "Commerce", "Arts", "Vocational"))
    )

    def change(one: Candidate, dice: random.Random) -> Candidate:
        return {**one, "hsc_s": "Vocational"} if dice.random() < 0.1 else one

    return changed(task, generate(ROWS, seed), change)


def category_renamed(seed: int) -> Dataset:
    """Arts become Humanities: as wide as before, but Commerce stands where Arts stood. Nothing crashes."""
    task = with_field(PLACEMENT, Category(name="hsc_s", categories=("Science", "Commerce", "Humanities")))

    def change(one: Candidate, _: random.Random) -> Candidate:
        return {**one, "hsc_s": "Humanities"} if one["hsc_s"] == "Arts" else one

    return changed(task, generate(ROWS, seed), change)


def field_added(seed: int) -> Dataset:
    """One more number in the middle of the columns, with a default; and another one's range is wider."""
    task = with_field(PLACEMENT, Number(name="gap_years", minimum=0, maximum=10, default=0))
    task = with_field(task, Number(name="etest_p", minimum=0, maximum=120))

    def change(one: Candidate, dice: random.Random) -> Candidate:
        wider = {"etest_p": 110.0} if dice.random() < 0.1 else {}
        return {**one, "gap_years": float(dice.randint(0, 3)), **wider}

    return changed(task, generate(ROWS, seed), change)


PAIRS: dict[str, Callable[[int], Dataset]] = {
    make.__name__: make for make in (retrained, category_added, category_renamed, field_added)
}


def make_old(storage: Path) -> Path:
    """Train the old version, which is the same in every pair, unless it exists."""
    version = storage / "old" / "placement" / "v1"
    if not version.exists():
        train(generate(ROWS, OLD), storage=storage / "old", estimator=ESTIMATOR)
    return version


def make_pair(name: str, storage: Path) -> VersionPair:
    """Train both versions of a pair."""
    old = make_old(storage)
    data = PAIRS[name](NEW)
    new = train(data, storage=storage / name, estimator=ESTIMATOR, previous=str(old))
    old_signature, new_signature = load_bundle(old).signature, new.bundle.signature
    offered = generate(2 * ROWS, CANDIDATES).candidates + data.candidates
    taken = [(one, takes(old_signature, one)) for one in offered if takes(new_signature, one)]
    pair = VersionPair(name, old, Path(new.uri), [], [one for one, by_old in taken if not by_old])
    both = [one for one, by_old in taken if by_old]
    return replace(pair, candidates=most_telling(both, *pair.references.values()))


def takes(signature: Signature, candidate: Candidate) -> bool:
    """Whether a candidate is valid for a signature."""
    try:
        validate(Rows([candidate], "candidates"), signature)
    except InvalidCandidates:
        return False
    return True


def most_telling(
    candidates: list[dict[str, Any]], old: SklearnReference, new: SklearnReference
) -> list[dict[str, Any]]:
    """Those whose scores tell the versions apart, first those that also tell encodings of one width apart.

    Others would hide a wrong answer: two forests say 1.0 of the same fifth of all candidates.
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
    """What a model says of candidates in another version's encoding; NaN if it refuses the width."""
    rows = vectorizer_of(encoding.bundle).transform(candidates)
    names = model.model.feature_names_in_
    if rows.shape[1] != len(names):
        return np.full(len(candidates), np.nan)
    scores: npt.NDArray[np.float64] = model.model.predict_proba(pd.DataFrame(rows, columns=names))
    return scores[:, model.bundle.positive_column]


def differ(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Where two scores tell something apart; not where there is none."""
    return np.abs(one - other) > TOLD_APART
