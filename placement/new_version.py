"""Lines about a new version, as `placement train` and `placement import` print them."""

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from placement.command import command_line
from training.metric_names import metric_text

if TYPE_CHECKING:
    from transformer.bundle.format import Bundle


def print_version(uri: str, bundle: "Bundle", details: Mapping[str, str], notes: Sequence[str]) -> None:
    """Print where a new version is, what it is, how good it is, and what to do next.

    Parameters
    ----------
    details
        Further lines of one of the commands, by their names.
    notes
        What to know about the version, a sentence each.
    """
    lines = [("uri", uri), ("model", bundle.model.estimator)]
    if bundle.model.serving_form:
        lines.append(("served as", bundle.model.serving_form))
    lines += details.items()
    lines += ((name, metric_text(value)) for name, value in bundle.metrics.items())
    if bundle.threshold is not None:
        lines.append(("threshold", f"{bundle.threshold:g}"))
    lines += (("note", note) for note in notes)
    command = ("rollout",) if bundle.previous else ("up", "--model")
    lines.append(("next", command_line(*command, shlex.quote(uri))))
    print("\n".join(f"{name:<10}{text}" for name, text in lines), flush=True)
