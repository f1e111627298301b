"""Every way in which two parsers could read a request differently is refused, over a real socket.

A case is the bytes, the status they get, and the requests that the application may see. `SMUGGLED` stands
behind every refused request: if the server read one byte beyond what it refused as a request, the
application would see it.
"""

import pytest
from sheaf_gateway.proxy import ServerLimits
from sheaf_gateway.proxy.errors import Refusal
from sheaf_gateway.proxy.framing import _chunked, _content_length, parse_head

LIMITS = ServerLimits(
    max_request_line=200, max_head=1_000, max_headers=12, max_body=64, max_chunk_extension=16, linger_s=0.2
)
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
HOST = b"Host: a\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST


def chunked(body: bytes) -> bytes:
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + body


REFUSED = {
    "length and chunked": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "two lengths that differ": (POST + b"Content-Length: 0\r\nContent-Length: 35\r\n\r\n", 400),
    "two lengths alike": (POST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
    "length list": (POST + b"Content-Length: 0, 0\r\n\r\n", 400),
    "length with plus": (POST + b"Content-Length: +0\r\n\r\n", 400),
    "length negative": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "length in hex": (POST + b"Content-Length: 0x0\r\n\r\n", 400),
    "length empty": (POST + b"Content-Length:\r\n\r\n", 400),
    "length with a space inside": (POST + b"Content-Length: 0 0\r\n\r\n", 400),
    "length with underscore": (POST + b"Content-Length: 0_0\r\n\r\n", 400),
    "length of wide digits": (POST + b"Content-Length: \xd9\xa0\r\n\r\n", 400),
    "length overflows 64 bits": (POST + b"Content-Length: 18446744073709551616\r\n\r\n", 400),
    "length of many zeros": (POST + b"Content-Length: " + b"0" * 40 + b"\r\n\r\n", 413),
    "length above the limit": (POST + b"Content-Length: 65\r\n\r\n", 413),
    "coding gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    "coding gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "coding chunked, chunked": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "coding chunked, identity": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n", 400),
    "coding identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", 400),
    "coding xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "coding chunked with parameter": (POST + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n", 400),
    "coding quoted": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    "coding empty": (POST + b"Transfer-Encoding:\r\n\r\n", 400),
    "coding given twice": (POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", 400),
    "coding after vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "coding in HTTP/1.0": (b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "tab before the colon": (POST + b"Content-Length\t: 0\r\n\r\n", 400),
    "folded coding": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "folded header": (POST + b"X: a\r\n\tb\r\n\r\n", 400),
    "space before the first header": (b"POST / HTTP/1.1\r\n " + HOST + b"\r\n", 400),
    "line ended by bare LF": (b"POST / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "header ended by bare LF": (POST + b"X: a\nContent-Length: 35\r\n\r\n", 400),
    "head ended by bare LF": (POST + b"X: a\r\n\n", 400),
    "head ended by two LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare CR in a value": (POST + b"X: a\rContent-Length: 35\r\n\r\n", 400),
    "bare CR at a line's end": (POST + b"X: a\r\r\n\r\n", 400),
    "NUL in a value": (POST + b"X: a\0b\r\n\r\n", 400),
    "control byte in a value": (POST + b"X: a\x01b\r\n\r\n", 400),
    "delete in a value": (POST + b"X: a\x7fb\r\n\r\n", 400),
    "NUL in a name": (POST + b"X\0: a\r\n\r\n", 400),
    "empty name": (POST + b": a\r\n\r\n", 400),
    "name with a space": (POST + b"X Y: a\r\n\r\n", 400),
    "name with a slash": (POST + b"X/Y: a\r\n\r\n", 400),
    "name beyond ASCII": (POST + b"X\xe9: a\r\n\r\n", 400),
    "header with no colon": (POST + b"X\r\n\r\n", 400),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "two Hosts alike": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "empty Host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "Host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "Host list": (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "Host with a port of letters": (b"GET / HTTP/1.1\r\nHost: a:http\r\n\r\n", 400),
    "chunk size negative": (chunked(b"-1\r\n\r\n"), 400),
    "chunk size with 0x": (chunked(b"0x1\r\na\r\n0\r\n\r\n"), 400),
    "chunk size with plus": (chunked(b"+1\r\na\r\n0\r\n\r\n"), 400),
    "chunk size empty": (chunked(b"\r\n\r\n"), 400),
    "chunk size with space before": (chunked(b" 1\r\na\r\n0\r\n\r\n"), 400),
    "chunk size with space behind": (chunked(b"1 \r\na\r\n0\r\n\r\n"), 400),
    "chunk size of nine digits": (chunked(b"000000001\r\na\r\n0\r\n\r\n"), 400),
    "chunk size overflows 64 bits": (chunked(b"10000000000000001\r\na\r\n0\r\n\r\n"), 400),
    "chunk size ended by bare LF": (chunked(b"1\na\r\n0\r\n\r\n"), 400),
    "chunk extension with bare CR": (chunked(b"1;a\rb\r\na\r\n0\r\n\r\n"), 400),
    "chunk extension with bare LF": (chunked(b"1;a\nb\r\na\r\n0\r\n\r\n"), 400),
    "chunk extension with NUL": (chunked(b"1;a\0\r\na\r\n0\r\n\r\n"), 400),
    "chunk extension too long": (chunked(b"1;" + b"x" * 40 + b"\r\na\r\n0\r\n\r\n"), 400),
    "chunk ended by bare LF": (chunked(b"1\r\na\n0\r\n\r\n"), 400),
    "chunk ended by nothing": (chunked(b"1\r\na0\r\n\r\n"), 400),
    "chunk longer than its size": (chunked(b"1\r\nab\r\n0\r\n\r\n"), 400),
    "last chunk ended by bare LF": (chunked(b"0\r\n\n"), 400),
    "trailer": (chunked(b"0\r\nX: a\r\n\r\n"), 400),
    "trailing length": (chunked(b"0\r\nContent-Length: 35\r\n\r\n"), 400),
    "chunks beyond the limit": (chunked(b"41\r\n" + b"a" * 65 + b"\r\n0\r\n\r\n"), 413),
    "chunks beyond the limit together": (
        chunked(b"30\r\n" + b"a" * 48 + b"\r\n11\r\n" + b"a" * 17 + b"\r\n0\r\n\r\n"),
        413,
    ),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "TRACE": (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "unknown method": (b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "known to others only": (b"PROPFIND / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "method in lower case": (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "method with a control byte": (b"GE\x01T / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST + b"\r\n", 505),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "HTTP/3": (b"GET / HTTP/3\r\n" + HOST + b"\r\n", 505),
    "http in lower case": (b"GET / http/1.1\r\n" + HOST + b"\r\n", 400),
    "version HTTP/1.10": (b"GET / HTTP/1.10\r\n" + HOST + b"\r\n", 400),
    "version HTTP/1.": (b"GET / HTTP/1.\r\n" + HOST + b"\r\n", 400),
    "two spaces in the line": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "tab in the line": (b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space before the method": (b" GET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space behind the version": (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
    "space in the target": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "NUL in the target": (b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "target beyond ASCII": (b"GET /\xe9 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "fragment in the target": (b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "relative target": (b"GET a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "asterisk for GET": (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "absolute target of another scheme": (b"GET ftp://a/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "absolute target with a user": (b"GET http://u@a/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "absolute target with no host": (b"GET http:///a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "absolute target with no Host": (b"GET http://a/ HTTP/1.1\r\n\r\n", 400),
    "two empty lines first": (b"\r\n\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "LF first": (b"\nGET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "TLS client hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400),
    "request line too long": (b"GET /" + b"a" * 200 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "request line that never ends": (b"GET /" + b"a" * 200, 414),
    "head too large": (POST + b"X: " + b"a" * 1_000 + b"\r\n\r\n", 431),
    "head that never ends": (POST + b"X: " + b"a" * 1_000, 431),
    "too many headers": (POST + b"X: a\r\n" * 12 + b"\r\n", 431),
    "unknown expectation": (POST + b"Expect: 200-ok\r\nContent-Length: 1\r\n\r\na", 417),
}

ACCEPTED = {
    "no body": (b"GET /a?b=c HTTP/1.1\r\n" + HOST + b"\r\n", ("GET", "/a?b=c", b"")),
    "length": (POST + b"Content-Length: 3\r\n\r\nabc", ("POST", "/", b"abc")),
    "length with leading zeros": (POST + b"Content-Length: 003\r\n\r\nabc", ("POST", "/", b"abc")),
    "length at the limit": (POST + b"Content-Length: 64\r\n\r\n" + b"a" * 64, ("POST", "/", b"a" * 64)),
    "length with white space around": (POST + b"Content-Length:\t 3 \r\n\r\nabc", ("POST", "/", b"abc")),
    "chunked": (chunked(b"3\r\nabc\r\n0\r\n\r\n"), ("POST", "/", b"abc")),
    "chunked in capitals": (POST + b"TRANSFER-ENCODING: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", ("POST", "/", b"a")),
    "chunk size in capitals": (chunked(b"A\r\n0123456789\r\n0\r\n\r\n"), ("POST", "/", b"0123456789")),
    "chunk extension": (chunked(b'3;a="b"\r\nabc\r\n0;z\r\n\r\n'), ("POST", "/", b"abc")),
    "body that looks like a request": (POST + b"Content-Length: 35\r\n\r\n" + SMUGGLED, ("POST", "/", SMUGGLED)),
    "absolute target": (b"GET http://b:80/x?y HTTP/1.1\r\n" + HOST + b"\r\n", ("GET", "/x?y", b"")),
    "absolute target with no path": (b"GET http://b HTTP/1.1\r\n" + HOST + b"\r\n", ("GET", "/", b"")),
    "absolute target with only a query": (b"GET http://b?q HTTP/1.1\r\n" + HOST + b"\r\n", ("GET", "/?q", b"")),
    "asterisk for OPTIONS": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", ("OPTIONS", "*", b"")),
    "one empty line first": (b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n", ("GET", "/", b"")),
    "upgrade is ignored": (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ("GET", "/", b""),
    ),
    "upgrade to h2c is ignored": (
        POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\na",
        ("POST", "/", b"a"),
    ),
    "IPv6 Host": (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", ("GET", "/", b"")),
    "value beyond ASCII": (POST + b"X: \xff\r\n\r\n", ("POST", "/", b"")),
    "empty value": (POST + b"X:\r\n\r\n", ("POST", "/", b"")),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_an_ambiguous_request_is_answered_closed_and_never_seen(name, start_server, connect, recorder):
    raw, status = REFUSED[name]
    client = await connect(await start_server(recorder, LIMITS))
    await client.send(raw + SMUGGLED)
    reply = await client.reply()
    assert reply.status == status
    assert reply.headers["connection"] == "close"
    assert b'"error"' in reply.body
    assert await client.rest() == b""
    assert recorder.seen == []


@pytest.mark.parametrize("name", REFUSED)
async def test_it_is_refused_on_a_second_request_as_on_the_first(name, start_server, connect, recorder):
    raw, status = REFUSED[name]
    client = await connect(await start_server(recorder, LIMITS))
    for body in (b"abc", b"abcd"):
        await client.send(POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        assert (await client.reply()).status == 200
    await client.send(raw + SMUGGLED)
    assert (await client.reply()).status == status
    assert await client.rest() == b""
    assert recorder.seen == [("POST", "/", b"abc"), ("POST", "/", b"abcd")]


@pytest.mark.parametrize("name", ACCEPTED)
async def test_a_well_framed_request_is_seen_and_so_is_what_follows_it(name, start_server, connect, recorder):
    raw, expected = ACCEPTED[name]
    client = await connect(await start_server(recorder, LIMITS))
    await client.send(raw + SMUGGLED)
    assert (await client.reply()).status == 200
    assert (await client.reply()).status == 200
    assert recorder.seen == [expected, ("GET", "/smuggled", b"")]


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusal_does_not_depend_on_how_the_bytes_arrive(name, start_server, connect, recorder):
    raw, status = REFUSED[name]
    client = await connect(await start_server(recorder, LIMITS))
    cut = len(raw) // 2
    await client.send(raw[:cut])
    await client.send(raw[cut:])
    assert (await client.reply()).status == status
    assert recorder.seen == []


def test_the_corpus_is_large_enough():
    assert len(REFUSED) >= 40


async def test_the_host_of_an_absolute_target_replaces_the_header(start_server, connect, recorder):
    client = await connect(await start_server(recorder))
    await client.send(b"GET http://b:81/x HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.reply()
    assert [value for name, value in recorder.requests[0].headers if name == b"host"] == [b"b:81"]


@pytest.mark.parametrize(
    "raw",
    [
        POST + b"Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
        POST + b"Content-Length: a\r\n\r\n",
    ],
)
def test_the_grammar_of_framing_fields_does_not_lean_on_llhttp(raw):
    with pytest.raises(Refusal):
        parse_head(raw[: raw.index(b"\r\n\r\n") + 4], LIMITS)


def test_length_and_chunked_together_are_refused_whatever_llhttp_thinks_of_them():
    with pytest.raises(Refusal, match="must not come together"):
        _chunked({b"content-length": b"1", b"transfer-encoding": b"chunked"}, 1)


@pytest.mark.parametrize("digits", [b"+5", b"5,5", b"", b"0x5", b"5 5", b"-1", b"\xb2"])
def test_a_length_is_decimal_digits_whatever_llhttp_thinks_of_it(digits):
    with pytest.raises(Refusal) as caught:
        _content_length(digits, LIMITS)
    assert caught.value.status == 400
