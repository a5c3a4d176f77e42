"""HTTP connections behave the same on uvloop, which the transformer runs on."""

import inspect

import pytest
import uvloop

from tests.integration import test_http_addresses, test_http_connection, test_predictor_client


@pytest.mark.parametrize(
    "promise",
    [
        test_http_connection.test_a_request_is_sent_unchanged,
        test_http_connection.test_large_requests_and_responses_arrive_complete,
        test_http_connection.test_small_requests_do_not_wait_for_others,
        test_http_connection.test_a_timeout_while_sending_closes_the_connection,
        test_http_connection.test_bytes_before_the_first_request_close_the_connection,
        test_http_connection.test_a_second_request_at_the_same_time_is_a_programming_error,
        test_http_connection.test_a_waiting_call_fails_when_the_connection_is_closed,
        test_http_addresses.test_a_missing_or_invalid_host_is_an_os_error,
        test_http_addresses.test_a_server_that_hangs_up_over_tls_has_closed_the_connection,
        test_http_addresses.test_tls_uses_the_host_name_as_server_name,
        test_predictor_client.test_a_client_connects_at_its_first_call_and_never_reconnects,
        test_predictor_client.test_a_client_that_may_reconnect_does,
    ],
)
def test_a_connection_behaves_the_same_on_uvloop(promise, certificate):
    needs_certificate = "certificate" in inspect.signature(promise).parameters
    uvloop.run(promise(certificate) if needs_certificate else promise())
