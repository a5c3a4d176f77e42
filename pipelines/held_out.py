"""Held-out candidates: those that no version of the pipeline is fitted on.

A candidate's own content decides on which side it is, so equal candidates are on one side. With the same
fields and share it is the same side in every run, so no version of an earlier run was fitted on held-out
candidates.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import orjson

from pipelines.step import PipelineError
from training.candidates import Candidate, Task
from training.data import Dataset, read_dataset
from training.table_file import Reading
from transformer.bundle.signature import Number

#: Minimum held-out candidates, of each class if there are classes.
MIN_HELD_OUT = 10
_FORMAT = Reading(format="jsonl")


def split(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Split a dataset into candidates to train on, and held-out ones.

    Parameters
    ----------
    share
        Expected share of the held-out candidates.

    Raises
    ------
    PipelineError
        If the share is not between 0 and 1, or too few candidates are held out.
    """
    if not 0 < share < 1:
        raise PipelineError(f"held_out_share: must be more than 0 and less than 1, got {share:g}")
    is_held_out = [_place(candidate) < share for candidate in dataset.candidates]
    training, held_out = (
        dataclasses.replace(
            dataset,
            candidates=list(compress(dataset.candidates, chosen)),
            labels=list(compress(dataset.labels, chosen)),
            source=f"{dataset.source}, {part}",
            seed=None,
        )
        for part, chosen in (
            ("training part", [not one for one in is_held_out]),
            ("held-out part", is_held_out),
        )
    )
    _check(held_out)
    return training, held_out


def _place(candidate: Candidate) -> float:
    """Return a number from 0 to 1 that depends on the candidate's content only."""
    digest = hashlib.sha256(orjson.dumps(candidate, option=orjson.OPT_SORT_KEYS)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _check(held_out: Dataset) -> None:
    classes = held_out.task.classes
    counts = {f" of class {label!r}": list(held_out.labels).count(label) for label in classes}
    for of_class, count in (counts or {"": len(held_out.labels)}).items():
        if count < MIN_HELD_OUT:
            raise PipelineError(
                f"{held_out.source}: must have at least {MIN_HELD_OUT} {held_out.task.row_names}{of_class}, "
                f"got {count}; use more data, or a larger held_out_share"
            )


def write(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a dataset as JSON lines."""
    label = dataset.task.label
    lines = (
        orjson.dumps({**candidate, label: value}, option=orjson.OPT_APPEND_NEWLINE)
        for candidate, value in zip(dataset.candidates, dataset.labels, strict=True)
    )
    Path(path).write_bytes(b"".join(lines))


def read(path: str | os.PathLike[str], task: Task, source: str) -> Dataset:
    """Read a dataset that `write` has written.

    Parameters
    ----------
    source
        Description of the data's origin.
    """
    return dataclasses.replace(read_dataset(path, task, _FORMAT), source=source)


def check_groups(groups: Sequence[str], task: Task) -> None:
    """Check that each field exists and has categories.

    Raises
    ------
    PipelineError
        If one does not.
    """
    known = [field.name for field in task.signature.fields if not isinstance(field, Number)]
    for name in groups:
        if name not in known:
            expected = f"a field with categories: {', '.join(known)}" if known else "none: all are numbers"
            raise PipelineError(f"groups: {name!r} is unknown, expected {expected}")
