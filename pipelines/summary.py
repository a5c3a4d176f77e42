"""Summary of an evaluation: what the gate decides on."""

import os
from pathlib import Path

from pydantic import BaseModel

from training.metric_names import metrics_text
from transformer.bundle.signature import STRICT


class Comparison(BaseModel):
    """The version that serves and the new one, on the held-out candidates that the former accepts.

    Attributes
    ----------
    metrics, serving_metrics
        Metrics of the new version and of the one that serves; empty if they cannot be computed, because
        candidates of a class are missing.
    psi
        Population stability index of each field: all new candidates, beside those that the version that
        serves was trained on. Empty if its bundle does not have their distribution.
    psi_rows
        New candidates that the indices are computed from.
    """

    model_config = STRICT

    version: str
    rows: int
    metrics: dict[str, float]
    serving_metrics: dict[str, float]
    psi: dict[str, float]
    psi_rows: int


class GroupResult(BaseModel):
    """Results of the new version for the held-out candidates of one group.

    Attributes
    ----------
    accuracy
        None for numbers.
    selection_rate
        Share of positive decisions; None for another question than of yes or no.
    """

    model_config = STRICT

    field: str
    group: str
    rows: int
    accuracy: float | None
    selection_rate: float | None


class Summary(BaseModel):
    """What the gate decides on.

    Attributes
    ----------
    rows, metrics
        Held-out candidates, and the new version's metrics on them.
    comparison
        None if no version serves.
    """

    model_config = STRICT

    version: str
    rows: int
    metrics: dict[str, float]
    comparison: Comparison | None
    groups: list[GroupResult]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Summary":
        """Read a summary that was written as JSON."""
        return cls.model_validate_json(Path(path).read_bytes())

    def text(self) -> str:
        """Return a line with the metrics of each version."""
        lines = [_line(self.version, self.rows, self.metrics)]
        if self.comparison is not None and self.comparison.metrics:
            compared, rows = self.comparison, self.comparison.rows
            lines.append(_line(self.version, rows, compared.metrics))
            lines.append(_line(compared.version, rows, compared.serving_metrics))
        # Without candidates that the version that serves does not accept, the first two are equal.
        return "\n".join(dict.fromkeys(lines))


def _line(version: str, rows: int, metrics: dict[str, float]) -> str:
    return f"{version} on {rows:,} held-out rows: {metrics_text(metrics)}"
