"""Clients never get the descriptors that the predictor's connections need."""

import resource

import pytest

from transformer.server.descriptors import BASE, MAX_CLIENTS, ClientLimits, client_limits, raise_limit
from transformer.settings import Settings

SETTINGS = Settings(predictor_host="a", predictor_connections=4)


@pytest.fixture
def open_files(monkeypatch):
    """Set the limits on open files that the process seems to have."""
    limits = [0, 0]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.__setitem__(slice(None), both))

    def set_limits(soft: int, hard: int | None = None) -> list[int]:
        limits[:] = soft, hard or soft
        return limits

    return set_limits


def test_rest_and_grpc_share_what_the_reserve_leaves(open_files):
    open_files(1044)
    assert client_limits(SETTINGS) == ClientLimits(rest=625, refused=125, grpc=250)


def test_without_grpc_rest_gets_all(open_files):
    open_files(1044)
    settings = Settings(predictor_host="a", predictor_connections=4, enable_grpc=False)
    assert client_limits(settings) == ClientLimits(rest=875, refused=125, grpc=0)


def test_each_worker_and_the_process_of_grpc_have_all_of_their_own(open_files):
    open_files(1044)
    settings = Settings(predictor_host="a", predictor_connections=4, workers=2)
    assert client_limits(settings) == ClientLimits(rest=875, refused=125, grpc=1000)


@pytest.mark.parametrize("soft", [64, 100, 256, 1024, 20_000])
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_reserve_has_two_descriptors_for_each_connection_to_the_predictor(
    open_files, soft, connections, workers
):
    open_files(soft)
    settings = Settings(predictor_host="a", predictor_connections=connections, workers=workers)
    limits = client_limits(settings)
    used = max(limits.rest + limits.refused, limits.grpc)
    if workers == 1:
        used = limits.rest + limits.refused + limits.grpc
    assert min(limits.rest, limits.refused, limits.grpc) > 0
    assert used + BASE + 2 * connections <= soft


@pytest.mark.parametrize("soft", [10**6, resource.RLIM_INFINITY])
def test_memory_limits_the_clients_of_a_process_with_many_descriptors(open_files, soft):
    open_files(soft)
    limits = client_limits(SETTINGS)
    assert limits.rest + limits.refused + limits.grpc == MAX_CLIENTS


def test_the_soft_limit_is_raised_to_the_hard_limit(open_files):
    limits = open_files(1024, 4096)
    raise_limit()
    assert limits == [4096, 4096]
