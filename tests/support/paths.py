"""Files of the checkout and of its environment."""

import sys
from pathlib import Path

#: The root of the checkout.
ROOT = Path(__file__).resolve().parents[2]
#: The InferenceService as it is deployed.
MANIFEST = ROOT / "inferenceservice" / "placement.yaml"
#: The Python of Ray, Spark and Dask, which `make engines` installs.
ENGINES_PYTHON = ROOT / ".runtimes" / "engines" / "bin" / "python"
#: The command `placement`.
PLACEMENT = Path(sys.executable).with_name("placement")
