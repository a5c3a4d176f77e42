"""The checkout's directories that tests read."""

from pathlib import Path

#: The root of the checkout.
ROOT = Path(__file__).resolve().parents[2]
#: The InferenceService as it is deployed.
MANIFEST = ROOT / "inferenceservice" / "placement.yaml"
