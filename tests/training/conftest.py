"""Fixture: the import of a model that was fitted elsewhere."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.imported_models import POSITIVE, ROWS
from training.imports.imported_task import Source
from training.imports.importing import ImportedModel, import_model


@pytest.fixture
def bring(tmp_path, monkeypatch):
    """Import an object that is pickled as churn.pkl, with the sample customers.csv or another one."""
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame(ROWS).assign(churn=np.where(POSITIVE, "yes", "no"))
    table.to_csv("customers.csv", index=False)

    def imported(content: object, sample: str | None = "customers.csv", **options) -> ImportedModel:
        Path("churn.pkl").write_bytes(pickle.dumps(content))
        files = {
            key: options.pop(key) for key in ("vectorizer", "task", "label", "reading") if key in options
        }
        return import_model(Source("churn.pkl", sample=sample, **files), storage="models", **options)

    return imported
