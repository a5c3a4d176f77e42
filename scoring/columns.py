"""Names of the columns that scoring adds to those of the input."""

#: Columns beside those of the input.
ADDED = ("prediction", "probability", "version")
#: Column that rows with invalid candidates have instead.
ERROR = "error"
