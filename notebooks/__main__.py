"""Install JupyterLab into a separate environment, and open the notebook: `python -m notebooks`."""

import os
import sys
from pathlib import Path

from predictor.environment import Environment, InstallError, ensure

HERE = Path(__file__).resolve().parent

#: JupyterLab, and the packages that the notebook uses.
ENVIRONMENT = Environment(
    name="notebook",
    lock=HERE / "environment.txt",
    contents="JupyterLab and the packages of the notebook",
    command="make notebook",
)
#: The notebook imports the project from the checkout, and starts the command `placement` of this environment.
VARIABLES = {
    "PYTHONPATH": str(HERE.parent),
    "PATH": os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)]),
}


def main(arguments: list[str]) -> None:
    """Install the environment unless it is up to date, and become JupyterLab.

    Parameters
    ----------
    arguments
        ``--install`` to only install it, or further arguments of JupyterLab, such as ``--no-browser``.
    """
    try:
        python = ensure(ENVIRONMENT, progress=lambda line: print(line, file=sys.stderr))
    except InstallError as error:
        sys.exit(str(error))
    if arguments != ["--install"]:
        command = [str(python), "-m", "jupyterlab", str(HERE / "placement.ipynb"), *arguments]
        os.execve(command[0], command, os.environ | VARIABLES)


if __name__ == "__main__":
    main(sys.argv[1:])
