"""Install JupyterLab into a separate environment, and open the notebook: `python -m notebooks`."""

import os
import sys
from pathlib import Path

from predictor.environment import Environment, become

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

if __name__ == "__main__":
    become(ENVIRONMENT, ["jupyterlab", str(HERE / "placement.ipynb")], VARIABLES, sys.argv[1:])
