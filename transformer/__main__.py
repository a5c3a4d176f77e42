"""``python -m transformer``: read the bundle, and serve it."""

import signal
import sys

from transformer.bundle.format import BundleError, load_bundle
from transformer.options import bundle_directory, check_fields, parse
from transformer.server.kserve_server import TransformerServer
from transformer.tracing.environment import check_tracing


def main() -> None:
    """Serve until stopped. A bundle that cannot be served ends the process with one line."""
    settings = parse()
    # A container's first process ignores SIGTERM without a handler, and a storage may be slow.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        bundle = load_bundle(bundle_directory())
        check_fields(settings, bundle)
        check_tracing()
    except (BundleError, ValueError) as error:
        sys.exit(f"transformer: {error}")
    finally:
        signal.signal(signal.SIGTERM, before)
    TransformerServer(bundle, settings).serve()


if __name__ == "__main__":
    main()
