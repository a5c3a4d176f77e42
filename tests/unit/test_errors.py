"""Errors fit into gRPC's metadata, and say how much they leave out."""

import re
import urllib.parse

import grpc
import pytest

from transformer.bundle.candidates import Columns, Rows
from transformer.bundle.signature import Category, Signature
from transformer.bundle.validation import validate
from transformer.errors import (
    MAX_GRPC_DETAILS,
    InvalidCandidates,
    InvalidRequest,
    grpc_details,
    printable,
    shortened,
)

MANY = Category(name="city", categories=tuple(f"City {number}" for number in range(200)))
#: Printable ASCII except the percent sign, which gRPC sends as it is.
UNESCAPED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def encoded(text: str) -> str:
    """A text as gRPC sends it in a header."""
    return urllib.parse.quote(text, safe=UNESCAPED)


def invalid(signature: Signature, *rows: dict) -> InvalidCandidates:
    with pytest.raises(InvalidCandidates) as raised:
        validate(Rows(list(rows), "instances"), signature)
    return raised.value


@pytest.mark.parametrize(
    ("count", "listed"),
    [
        (1, "one of c0"),
        (8, "one of c0, c1, c2, c3, c4, c5, c6, c7"),
        (9, "one of c0, c1, c2, c3, c4, … (4 more)"),
        (200, "one of c0, c1, c2, c3, c4, … (195 more)"),
    ],
)
def test_an_error_lists_few_categories_in_full_and_counts_the_rest_of_many(count, listed):
    assert Category(name="c", categories=tuple(f"c{number}" for number in range(count))).expected == listed


def test_long_names_and_categories_are_cut():
    signature = Signature(fields=(Category(name="f" * 1000, categories=("ä" * 32, "b" * 33, "c\n")),))
    (problem,) = invalid(signature, {"f" * 1000: "x" * 1000}).problems
    assert problem == (
        f"instances[0].{'f' * 63}…: must be one of {'ä' * 32}, {'b' * 31}…, c\\n, got '{'x' * 38}…"
    )
    with pytest.raises(InvalidCandidates, match=r"inputs\.f{63}…\[0\]: "):
        validate(Columns(1, {"f" * 1000: ["x"]}), signature)


def test_a_field_of_200_categories_keeps_twenty_problems_within_grpcs_limit():
    error = invalid(Signature(fields=(MANY,)), *[{"city": "Atlantis"}] * 20)
    assert len(error.problems) == 20
    assert grpc_details(error) == str(error)
    assert len(encoded(str(error))) <= MAX_GRPC_DETAILS


def test_an_error_in_ascii_is_cut_between_problems():
    field = Category(name="field" * 100, categories=tuple("c" * length for length in range(40, 48)))
    error = invalid(Signature(fields=(field,)), *[{field.name: "x" * 99}] * 50)
    details = grpc_details(error)
    shown, count = details.rsplit("; ", 1)
    problems = tuple(shown.split("; "))
    assert 1 < len(problems) < 20
    assert problems == error.problems[: len(problems)]
    assert count == f"and {50 - len(problems)} more problems"
    more = "; ".join([*error.problems[: len(problems) + 1], count])
    assert len(encoded(details)) <= MAX_GRPC_DETAILS < len(encoded(more))


def test_an_error_in_other_scripts_is_cut_between_problems():
    cities = Category(name="城市", categories=tuple(f"城市{'名' * number}" for number in range(200)))
    error = invalid(Signature(fields=(cities,)), *[{"城市": "亚特兰蒂斯"}] * 20)
    details = grpc_details(error)
    assert re.search(r"'; and (\d+) more problems$", details)
    assert len(encoded(details)) <= MAX_GRPC_DETAILS


def test_the_longest_possible_problem_fits():
    fields = (Category(name="\U0001f4a9" * 99, categories=tuple("\U0001f4a9" * (40 + n) for n in range(8))),)
    error = invalid(Signature(fields=fields), {"\U0001f4a9" * 99: "\U0001f4a9" * 99})
    assert grpc_details(error) == str(error)


def test_one_hidden_problem_is_not_several():
    assert str(InvalidCandidates(["a"], 2, [0, 1])) == "a; and 1 more problem"


@pytest.mark.parametrize("char", ["x", "%", "ä", "\U0001f4a9", "\udc80"])
def test_any_other_error_is_cut_at_its_end(char):
    details = grpc_details(InvalidRequest(char * 10_000))
    assert re.fullmatch(f"{char}+…", details)
    size = len(urllib.parse.quote(details.encode(errors="surrogatepass"), safe=UNESCAPED))
    assert MAX_GRPC_DETAILS - 12 < size <= MAX_GRPC_DETAILS


def test_a_short_error_stays_as_it_is():
    assert grpc_details(InvalidRequest("100 % of the tensor 'ä'")) == "100 % of the tensor 'ä'"


async def test_a_client_with_default_limits_receives_the_longest_error():
    error = InvalidRequest("\U0001f4a9" * 10_000)

    async def refuse(_, context):
        context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
        context.set_details(grpc_details(error))
        context.set_trailing_metadata([("retry-after", "1")])
        return b""

    server = grpc.aio.server()
    methods = {"Ask": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/test/Ask")(b"")
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == grpc_details(error)
    await server.stop(0)


@pytest.mark.parametrize(
    ("text", "cut"), [("abc", "abc"), ("abcd", "abc"), (" a\n", "a"), ("\x1b[0m", "\\x1"), ("\udc80", "\\ud")]
)
def test_external_text_is_printed_on_one_line(text, cut):
    assert printable(text, 3) == cut


@pytest.mark.parametrize(
    ("text", "cut"), [("abc", "abc"), ("abcd", "ab…"), ("\n", "\\n"), ("\n\n", "\\n…"), ("abc ", "ab…")]
)
def test_a_cut_text_ends_with_an_ellipsis(text, cut):
    assert shortened(text, 3) == cut
