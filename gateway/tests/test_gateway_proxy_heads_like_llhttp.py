"""What the grammar accepts it reads as llhttp does: two readings of one head are what smuggling needs."""

from contextlib import suppress

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.proxy import ServerLimits
from sheaf_gateway.proxy.errors import Refusal
from sheaf_gateway.proxy.framing import parse_head

LIMITS = ServerLimits()
NAMES = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=12).map(str.encode)
VALUES = st.binary(max_size=24)
DECIDING = st.sampled_from([b"Connection", b"Upgrade", b"Content-Length", b"Transfer-Encoding", b"Expect"])
SAID = st.sampled_from(
    [b"close", b"upgrade", b"h2c", b"chunked", b"gzip, chunked", b"100-continue", b"7", b"+7", b"0x7"]
)
LENGTHS = st.integers(0, 2**66).map(lambda number: b"%d" % number)
SPACES = st.sampled_from([b"", b" ", b"\t "])
FIELDS = st.lists(st.tuples(NAMES, SPACES, VALUES) | st.tuples(DECIDING, SPACES, SAID | LENGTHS), max_size=6)


class Walk:
    def __init__(self):
        self.headers = []

    def on_header(self, name, value):
        self.headers.append((name.lower(), value.strip(b"\t ")))


def by_llhttp(raw: bytes) -> list:
    walk = Walk()
    with suppress(httptools.HttpParserUpgrade):
        httptools.HttpRequestParser(walk).feed_data(raw)
    return walk.headers


@given(FIELDS)
def test_what_is_accepted_is_read_as_llhttp_reads_it(fields):
    lines = [name + b":" + space + value for name, space, value in fields]
    raw = b"\r\n".join([b"POST /x HTTP/1.1", b"host: a", *lines, b"", b""])
    try:
        head = parse_head(raw, LIMITS)
    except Refusal:
        return
    assert list(head.headers) == by_llhttp(raw)


@pytest.mark.parametrize("value", [b"plain", b" \t padded \t ", b"", b"caf\xe9", b'"a, b"; c=1'])
def test_values_come_without_the_space_around_them(value):
    raw = b"POST /x HTTP/1.1\r\nHost: a\r\nX-One:" + value + b"\r\n\r\n"
    assert parse_head(raw, LIMITS).headers[1] == (b"x-one", value.strip())
    assert by_llhttp(raw)[1] == (b"x-one", value.strip())


@pytest.mark.parametrize(
    ("digits", "status"),
    [
        (b"0" * 30_000 + b"5", 413),
        (b"0" * 30_000, 413),
        (b"9" * 30_000, 400),
        (b"%d" % 2**64, 400),
        (b"%d" % (2**64 - 1), 413),
    ],
)
def test_a_length_of_any_number_of_digits_is_refused_and_never_computed(digits, status):
    with pytest.raises(Refusal) as caught:
        parse_head(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + digits + b"\r\n\r\n", LIMITS)
    assert caught.value.status == status
