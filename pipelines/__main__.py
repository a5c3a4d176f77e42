"""Install Kubeflow's SDK into a separate environment, and run the pipeline: `python -m pipelines`."""

import os
import sys
from pathlib import Path

from predictor.environment import Environment, InstallError, ensure

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


def main(arguments: list[str]) -> None:
    """Install the environment unless it is up to date, and become the pipeline's runner.

    Parameters
    ----------
    arguments
        ``--install`` to only install it, or arguments of `pipelines.run`.
    """
    try:
        python = ensure(ENVIRONMENT, progress=lambda line: print(line, file=sys.stderr))
    except InstallError as error:
        sys.exit(str(error))
    if arguments != ["--install"]:
        command = [str(python), "-m", "pipelines.run", *arguments]
        os.execve(command[0], command, os.environ | VARIABLES)


if __name__ == "__main__":
    main(sys.argv[1:])
