"""Where this machine can read the bundles that a cluster serves."""

import tempfile
from collections.abc import Mapping

from inferenceservice.rollout_target import TargetError
from storage import bundles
from transformer.bundle.format import Bundle, BundleError


def fetch(uri: str, copies: Mapping[str, str]) -> Bundle:
    """The bundle at a URI that a cluster knows, its model held against its digest.

    Blocks: call it in a thread, to which the directory belongs that it is copied to for a while.

    Parameters
    ----------
    copies
        Where bundles can be read that are out of this machine's reach, by URI or by the beginning of one.

    Raises
    ------
    TargetError
        If it cannot be read.
    """
    source = _copy_of(uri, copies)
    with tempfile.TemporaryDirectory(prefix="bundle-") as directory:
        try:
            return bundles.fetch(source, directory)
        except (bundles.StorageError, BundleError) as error:
            raise TargetError(str(error)) from error


def _copy_of(uri: str, copies: Mapping[str, str]) -> str:
    for start in sorted(copies, key=len, reverse=True):
        rest = uri.removeprefix(start.rstrip("/"))
        if rest != uri and rest[:1] in ("", "/"):
            return copies[start].rstrip("/") + rest
    scheme, separator, path = uri.partition("://")
    if not separator or scheme == "file":
        raise TargetError(f"{uri}: a cluster cannot read it; give the URI of its storage, as s3:// or pvc://")
    if scheme != "s3":
        raise TargetError(
            f"{uri}: {scheme}:// cannot be read from here; name a copy of the bundle, for example "
            f"--bundle {scheme}://{path.split('/')[0]}=DIRECTORY"
        )
    return uri
