"""The error of a scoring job."""


class ScoringError(Exception):
    """A job that cannot run or go on; the message says where, what came and what to do."""
