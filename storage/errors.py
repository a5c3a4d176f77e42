"""Errors of a storage."""


class StorageError(Exception):
    """A storage cannot be read or written; the message names the URI and says what to do."""


class VersionExistsError(StorageError):
    """The version exists already; versions are never overwritten."""
