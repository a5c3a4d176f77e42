"""Install Kubeflow's SDK into a separate environment, and run the pipeline: `python -m pipelines`."""

import sys
from pathlib import Path

from predictor.environment import Environment, become

HERE = Path(__file__).resolve().parent

#: Kubeflow's SDK, and the packages of the steps.
ENVIRONMENT = Environment(
    name="pipelines",
    lock=HERE / "environment.txt",
    contents="Kubeflow's SDK and the packages of the pipeline",
    command="make pipeline",
)
#: The steps import the project from the checkout.
VARIABLES = {"PYTHONPATH": str(HERE.parent)}

if __name__ == "__main__":
    become(ENVIRONMENT, ["pipelines.run"], VARIABLES, sys.argv[1:])
