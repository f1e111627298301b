"""What engines do wrong, one script each: scripts of `chaos_fleet.RawServer`."""

from __future__ import annotations

import asyncio

from chaos_fleet import LAST, STREAM_HEAD, Asked, Script, chunk, events, response, whole

Writer = asyncio.StreamWriter
LONG = 60.0


async def hang(_asked: Asked, _writer: Writer) -> None:
    await asyncio.sleep(LONG)


async def hang_after_the_head(asked: Asked, writer: Writer) -> None:
    writer.write(STREAM_HEAD if asked.document["stream"] else response(b"", length=500))
    await asyncio.sleep(LONG)


async def hang_within_the_answer(asked: Asked, writer: Writer) -> None:
    await begin(asked, writer)
    await asyncio.sleep(LONG)


async def reset(_asked: Asked, writer: Writer) -> None:
    writer.transport.abort()


async def close(_asked: Asked, writer: Writer) -> None:
    writer.close()


async def half_a_head(_asked: Asked, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-ty")
    await writer.drain()
    writer.close()


async def die_within_the_answer(asked: Asked, writer: Writer) -> None:
    await begin(asked, writer)
    writer.transport.abort()


async def die_within_a_chunk(asked: Asked, writer: Writer) -> None:
    await begin(asked, writer)
    writer.write(chunk(events(asked.document)[2])[:20])
    await writer.drain()
    writer.transport.abort()


async def die_within_a_character(asked: Asked, writer: Writer) -> None:
    """The connection ends, in good order for HTTP, after the first byte of a character of two."""
    if asked.document["stream"]:
        await begin(asked, writer)
        data = events(asked.document)[2]
        writer.write(chunk(data[: data.index("é".encode()) + 1]) + LAST)
    else:
        writer.write(response(b'{"choices":[{"message":{"content":"\xc3'))
    await writer.drain()
    writer.close()


async def end_too_early(asked: Asked, writer: Writer) -> None:
    """Well-framed, but not the whole of it."""
    if asked.document["stream"]:
        await begin(asked, writer)
        writer.write(LAST)
    else:
        writer.write(response(whole(asked.document)[:-40]))


async def dribble(asked: Asked, writer: Writer) -> None:
    """The right answer, byte by byte."""
    if asked.document["stream"]:
        data = STREAM_HEAD + b"".join(map(chunk, events(asked.document))) + LAST
    else:
        data = response(whole(asked.document))
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)


async def dribble_a_head_for_ever(_asked: Asked, writer: Writer) -> None:
    await drip(writer, b"HTTP/1.1 200 OK\r\nx: ")


async def dribble_an_answer_for_ever(asked: Asked, writer: Writer) -> None:
    """Never a pause that is too long, never an event or an answer that is whole."""
    if asked.document["stream"]:
        await begin(asked, writer)
        await drip(writer, chunk(b"data: "), chunk(b"x"))
    else:
        await drip(writer, response(b"{", length=10**6))


async def headers_without_end(_asked: Asked, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"x-more: and more\r\n" * 50)
        await writer.drain()
        await asyncio.sleep(0.001)


async def interim_without_end(_asked: Asked, writer: Writer) -> None:
    while not writer.is_closing():
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def broken_event(asked: Asked, writer: Writer) -> None:
    """Bytes that are no event in the place of one."""
    await with_in_place_of_an_event(asked, writer, b"\xff\xfe not an event \x00\r\r")


async def broken_json_in_an_event(asked: Asked, writer: Writer) -> None:
    await with_in_place_of_an_event(asked, writer, b'data: {"id":"c","choices":[{"index":0,"delta":{"conte\n\n')


async def with_in_place_of_an_event(asked: Asked, writer: Writer, wrong: bytes) -> None:
    await begin(asked, writer)
    if asked.document["stream"]:
        for data in (wrong, *events(asked.document)[3:]):
            writer.write(chunk(data))
        writer.write(LAST)
    else:
        writer.close()


async def begin(asked: Asked, writer: Writer) -> None:
    """Two events of a stream, or half of an answer."""
    if asked.document["stream"]:
        writer.write(STREAM_HEAD)
        for data in events(asked.document)[:2]:
            writer.write(chunk(data))
    else:
        data = whole(asked.document)
        writer.write(response(data[:50], length=len(data)))
    await writer.drain()
    await asyncio.sleep(0.02)


async def drip(writer: Writer, first: bytes, then: bytes = b"x") -> None:
    writer.write(first)
    while not writer.is_closing():
        writer.write(then)
        await writer.drain()
        await asyncio.sleep(0.1)


def bytes_of(data: bytes, *, shut: bool = True) -> Script:
    """Always these bytes, then the end of the connection."""

    async def script(_asked: Asked, writer: Writer) -> None:
        writer.write(data)
        await writer.drain()
        if shut:
            writer.close()

    return script


OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"

RAW = {
    "not_http": b"\x00\x01\x02 not http\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "http_2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "status_of_letters": b"HTTP/1.1 abc OK\r\ncontent-length: 0\r\n\r\n",
    "status_999": b"HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n",
    "switching_protocols": b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc",
    "length_too_large": OK + b"content-length: 500\r\n\r\n{}",
    "length_too_small": OK + b'content-length: 5\r\n\r\n{"choices":[]}',
    "length_negative": OK + b"content-length: -5\r\n\r\n{}",
    "length_of_letters": OK + b"content-length: five\r\n\r\n{}",
    "length_twice": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}x",
    "length_and_chunks": OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "length_beyond_64_bits": OK + b"content-length: 99999999999999999999\r\n\r\n{}",
    "chunk_size_of_letters": OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "chunk_size_beyond_64_bits": OK + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "header_of_a_megabyte": OK + b"x: " + b"y" * 2**20 + b"\r\ncontent-length: 2\r\n\r\n{}",
    "header_with_a_zero": OK + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}",
    "no_json": OK + b"content-length: 9\r\n\r\nno, thanks"[:-1],
    "json_cut_off": OK + b'content-length: 12\r\n\r\n{"choices":[',
    "json_of_wrong_bytes": OK + b'content-length: 9\r\n\r\n{"a":"\xff"}',
    "json_without_an_object": OK + b"content-length: 2\r\n\r\n[]",
    "json_too_deep": OK + b"content-length: 200000\r\n\r\n" + b'{"a":' * 40_000,
    "nothing": OK + b"content-length: 0\r\n\r\n",
    "no_content": b"HTTP/1.1 204 X\r\n\r\n",
    "moved": b"HTTP/1.1 302 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    "page": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>",
    "refusal_as_a_page": b"HTTP/1.1 400 X\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>",
    "page_as_a_stream": SSE + b"connection: close\r\n\r\n<html>\n\n<body>\n\n</html>",
    "stream_of_nothing": SSE + b"content-length: 0\r\n\r\n",
    "stream_of_one_line": SSE + b"connection: close\r\n\r\n" + b"x" * 3_000_000,
    "failure": b"HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\nTraceback",
    "overload": b"HTTP/1.1 503 X\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
}

FAULTS: dict[str, Script] = {
    **{
        script.__name__: script
        for script in (
            hang, hang_after_the_head, hang_within_the_answer, reset, close, half_a_head, die_within_the_answer,
            die_within_a_chunk, die_within_a_character, end_too_early, dribble, dribble_a_head_for_ever,
            dribble_an_answer_for_ever, headers_without_end, interim_without_end, broken_event, broken_json_in_an_event,
        )
    },
    **{name: bytes_of(data) for name, data in RAW.items()},
}  # fmt: skip
