"""Names of the columns that scoring adds to those of the input."""

from collections.abc import Container

from scoring.errors import ScoringError

#: Columns beside those of the input; without `PROBABILITY` if the model gives none.
PREDICTION = "prediction"
PROBABILITY = "probability"
VERSION = "version"
#: Column that rows with invalid candidates have instead.
ERROR = "error"


def check_free(names: Container[str], what: str) -> None:
    """Check that an added name is not taken; `what` begins the message, before the name.

    Raises
    ------
    ScoringError
        If it is.
    """
    for name in (PREDICTION, PROBABILITY, VERSION, ERROR):
        if name in names:
            raise ScoringError(f"{what} {name!r} already; rename it or leave it out")
