"""The control file of a local service: the address of its control server, and the token that it requires."""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from transformer.bundle.regular_file import read_file

#: Name of the file in the directory that `placement up` runs in.
CONTROL_FILE = "control.json"
_MAX_BYTES = 10_000


@dataclass(frozen=True, slots=True)
class ControlFile:
    """Content of the control file.

    Attributes
    ----------
    address
        ``host:port`` of the control server.
    token
        Bearer token of its requests.
    """

    address: str
    token: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises
        ------
        OSError, ValueError
            If there is no such file, or it is no control file.
        """
        try:
            return cls(**json.loads(read_file(path, _MAX_BYTES)))
        except TypeError as error:
            raise ValueError(f"{path}: is not a control file") from error

    def write(self, path: Path) -> None:
        """Replace the file by a new one that only this user can read from the moment of its creation."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file)

    def remove(self, path: Path) -> None:
        """Remove the file unless another service has replaced it."""
        with contextlib.suppress(OSError, ValueError):
            if ControlFile.read(path) == self:
                path.unlink()
