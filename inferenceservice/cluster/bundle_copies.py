"""Reading the bundles of a cluster on this machine, from their storage or from copies."""

from collections.abc import Mapping

from inferenceservice.cancellable_thread import run_cancellable
from inferenceservice.rollout_target import TargetError
from storage import bundles
from storage.errors import StorageError
from transformer.bundle.format import Bundle, BundleError


async def read_bundle(uri: str, copies: Mapping[str, str]) -> Bundle:
    """Read the bundle at a URI of the cluster, and check the digest of its model.

    Parameters
    ----------
    copies
        Copies of bundles that this machine cannot read, by URI or by a prefix of URIs.

    Raises
    ------
    TargetError
        If the bundle cannot be read.
    """
    source = _readable_uri(uri, copies)
    try:
        return await run_cancellable(lambda deadline: bundles.check(source, deadline), bundles.COPY_TIMEOUT_S)
    except TimeoutError as error:
        raise TargetError(f"{source}: {error.strerror}; check that the storage answers") from error
    except (StorageError, BundleError) as error:
        where = "" if source == uri else f"{uri}: its copy cannot be used: "
        raise TargetError(f"{where}{error}") from error


def _readable_uri(uri: str, copies: Mapping[str, str]) -> str:
    for prefix in sorted(copies, key=len, reverse=True):
        rest = uri.removeprefix(prefix.rstrip("/"))
        if rest != uri and rest[:1] in ("", "/"):
            return copies[prefix].rstrip("/") + rest
    scheme, separator, path = uri.partition("://")
    if not separator or scheme == "file":
        raise TargetError(
            f"{uri}: a cluster cannot read a local path; use a URI of its storage (s3:// or pvc://)"
        )
    if scheme != "s3":
        raise TargetError(
            f"{uri}: this machine cannot read {scheme}://; name a copy of the bundle, for example "
            f"--bundle {scheme}://{path.split('/')[0]}=DIRECTORY"
        )
    return uri
