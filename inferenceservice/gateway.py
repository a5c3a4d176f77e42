"""Requests through a gateway: the headers that it needs, and the authority that signed its certificate."""

import argparse
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

#: One header. Other characters could begin a second one; see RFC 9110.
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_HOST = "host"


class GatewayError(Exception):
    """A certificate file that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Headers and certificates for a service behind a gateway.

    Attributes
    ----------
    headers
        Names and values of headers to send with every request. ``Host`` is also the name that the gateway's
        certificate must have.
    ca_file
        File of the certificates (PEM) that sign the gateway's; by default those of the system.
    """

    headers: Sequence[tuple[str, str]] = ()
    ca_file: Path | None = None

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
        """Add the options of a command that sends requests."""
        parser.add_argument(
            "--header",
            action="append",
            type=_header,
            default=[],
            metavar="NAME:VALUE",
            help="header of every request, for example Host:placement.example.com or authorization:Bearer…; "
            "can be repeated",
        )
        parser.add_argument(
            "--ca-file",
            type=Path,
            metavar="FILE",
            help="certificates (PEM) that sign the server's (default: the system's)",
        )

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Gateway":
        """Return the values of these options."""
        return cls(tuple(options.header), options.ca_file)

    @property
    def host(self) -> str | None:
        """Value of the header ``Host``."""
        return next((value for name, value in self.headers if name.lower() == _HOST), None)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The headers as gRPC metadata: names in lower case, without ``Host``."""
        return [(name.lower(), value) for name, value in self.headers if name.lower() != _HOST]

    def session(self, timeout_s: float, **options: Any) -> aiohttp.ClientSession:  # noqa: ANN401 (aiohttp's)
        """Return a session that sends the headers and checks the certificate.

        Raises
        ------
        GatewayError
            If the file has no certificates.
        """
        return aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers=self.headers,
            connector=aiohttp.TCPConnector(ssl=self._ssl()),
            **options,
        )

    @property
    def server_hostname(self) -> str | None:
        """Name that the certificate must have, if it is not that of the URL."""
        return None if self.host is None else self.host.partition(":")[0]

    def root_certificates(self) -> bytes | None:
        """Return the content of the certificates' file, if there is one.

        Raises
        ------
        GatewayError
            If it cannot be read.
        """
        self._ssl()
        return None if self.ca_file is None else self.ca_file.read_bytes()

    def _ssl(self) -> ssl.SSLContext | bool:
        if self.ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except ssl.SSLError as error:
            raise GatewayError(f"--ca-file {self.ca_file}: must have certificates in PEM") from error
        except OSError as error:
            raise GatewayError(f"--ca-file {self.ca_file}: {error.strerror}") from error


#: No headers, and the system's certificates.
DIRECT = Gateway()


def _header(text: str) -> tuple[str, str]:
    match = _HEADER.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be NAME:VALUE on one line, got {text!r}")
    return match[1], match[2].rstrip()
