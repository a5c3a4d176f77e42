"""Backends that cannot be used are refused with a reason."""

import sys

import pytest

from training.backends import BackendError, _on_worker, connect


@pytest.mark.parametrize(
    ("backend", "module", "package"), [("dask", "distributed", "distributed"), ("ray", "ray", "ray")]
)
def test_an_error_says_how_to_install_a_backend(backend, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    problem = rf"--backend {backend} needs the package {package}: .*`make engines`.*placement\[{backend}\]"
    with pytest.raises(BackendError, match=problem), connect(backend):
        pass


def test_an_address_needs_a_backend():
    with (
        pytest.raises(BackendError, match="--cluster needs --backend dask or ray"),
        connect(None, "tcp://a:1"),
    ):
        pass


def test_workers_with_other_libraries_are_refused():
    with pytest.raises(BackendError, match=r"a worker has .*'sklearn': .*, expected .*1\.0"):
        _on_worker(len, {"numpy": "1.0"}, ([],))
