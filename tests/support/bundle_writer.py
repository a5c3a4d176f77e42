"""Program that publishes versions until it is killed; run by `test_storage_writers.py`.

python -m tests.support.bundle_writer TEMPLATE_DIRECTORY STORAGE FIRST_NUMBER
"""

import sys
from itertools import count

from storage.bundles import publish
from tests.support.bundle_copies import bundle_copy
from transformer.bundle.format import load_bundle


def main() -> None:
    """Publish copies of a version, each with another model of 2 MB."""
    template, storage, first = load_bundle(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    print("ready", flush=True)
    for number in count(first):
        model = bytes([number % 256]) * 2_000_000
        publish(bundle_copy(template, f"v{number}", model), model, storage)


if __name__ == "__main__":
    main()
