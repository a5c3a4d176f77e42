"""The data of a run: the task, and the candidates to train on and to hold out."""

from collections.abc import Sequence
from pathlib import Path

from pipelines import held_out
from pipelines.step import PipelineError
from storage.uris import local_path
from training.candidates import PLACEMENT, Task
from training.data import Dataset, read_dataset
from training.generator import generate

#: Seed of generated candidates. Another one than that of `make run`, whose version was fitted on all of its
#: candidates, also on those that the pipeline would hold out.
SEED = 1


def read_task(uri: str) -> Task:
    """Read a task file; without a URI, return the task of placement."""
    return Task.read(_readable(uri)) if uri else PLACEMENT


def validate(
    data: str, task: Task, *, rows: int, seed: int, share: float, groups: Sequence[str]
) -> tuple[Dataset, Dataset]:
    """Check every value of the data; return the candidates to train on, and the held-out ones.

    Parameters
    ----------
    data
        URI of the labelled candidates; empty to generate `rows` candidates with this seed.
    share
        Share of the held-out candidates.
    groups
        Fields whose categories the gate will compare.

    Raises
    ------
    PipelineError, DataError
        If the data, the share or the groups are invalid.
    """
    held_out.check_groups(groups, task)
    if data:
        dataset = read_dataset(_readable(data), task)
    elif task is PLACEMENT:
        dataset = generate(rows, seed)
    else:
        raise PipelineError("data: is required with a task: only candidates of placement can be generated")
    return held_out.split(dataset, share)


def _readable(uri: str) -> Path:
    path = local_path(uri)
    if path is None:
        raise PipelineError(
            f"{uri}: must be a path, file:// or pvc://; mount the file or copy it to the claim"
        )
    return path
