"""A log's reader may be slow or gone: nobody waits for it, and what is lost is counted."""

import asyncio
import errno
import io
import os
import socket
import sys

import pytest
from sheaf_gateway import logs
from sheaf_gateway.logs import LogStream, lost_lines, sending, unwaited_stderr

LINE = b"x" * 99 + b"\n"


def ends(kind: str) -> tuple[int, int]:
    """A reading and a writing end; the reading one does not block."""
    if kind == "pipe":
        found = os.pipe()
    elif kind == "terminal":
        found = os.openpty()
    else:
        found = tuple(end.detach() for end in socket.socketpair())
    os.set_blocking(found[0], False)
    return found


@pytest.fixture(params=["pipe", "socket", "terminal"])
def channel(request):
    reading, writing = ends(request.param)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def taken(reading: int) -> bytes:
    found = b""
    while True:
        try:
            found += os.read(reading, 1 << 20)
        except BlockingIOError:
            return found.replace(b"\r\n", b"\n")


def test_nobody_waits_and_what_is_kept_comes_later_whole_and_in_order(channel, monkeypatch):
    monkeypatch.setattr(logs, "MAX_KEPT", 1 << 18)
    reading, writing = channel
    with sending(writing) as send:
        stream = LogStream(send)
        said = [b"%08d" % number + LINE[8:] for number in range(8_000)]
        kept = [line for line in said if stream.write(line)]
        assert len(said) - len(kept) == stream.lost > 0
        assert os.get_blocking(writing)
        found = taken(reading)
        for _ in range(2_000):
            if found.count(b"\n") == len(kept):
                break
            with stream._lock:
                stream._drain()
            found += taken(reading)
        assert found == b"".join(kept)
        stream.close()


async def test_what_is_kept_is_tried_again_though_nothing_more_is_said(monkeypatch):
    monkeypatch.setattr(logs, "_AGAIN_S", 0.01)
    reading, writing = ends("pipe")
    with sending(writing) as send:
        stream = LogStream(send)
        for _ in range(1_000):
            stream.write(LINE)
        found = b""
        for _ in range(200):
            found += taken(reading)
            await asyncio.sleep(0.01)
            if len(found) == 100_000:
                break
        assert (len(found), stream.lost, stream._timer) == (100_000, 0, None)
        stream.close()
    os.close(reading)
    os.close(writing)


def test_what_cannot_be_written_at_all_is_lost_and_counted_and_said_by_nobody_else():
    def full(_data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    stream = LogStream(full)
    assert stream.write(LINE * 3) == 0
    assert stream.lost == 3
    stream.close()


def test_a_stream_that_ends_says_its_last_words_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(logs, "_STEP_S", 0.0)
    reading, writing = ends("pipe")
    with sending(writing) as send:
        stream = LogStream(send)
        while not stream._kept:
            stream.write(LINE)
        taken(reading)
        stream.close()
        assert taken(reading).endswith(LINE)
        stuck = LogStream(send)
        while not stuck._kept:
            stuck.write(LINE)
        stuck.close()
    os.close(reading)
    os.close(writing)


def test_a_file_is_written_at_its_end(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        file.write(b"before\n")
        file.flush()
        with sending(file.fileno()) as send:
            assert LogStream(send).write(LINE) == len(LINE)
    assert (tmp_path / "log").read_bytes() == b"before\n" + LINE


def test_standard_error_is_as_before_afterwards(capfd):
    before = sys.stderr
    with unwaited_stderr():
        sys.stderr.write("said\n")
        assert sys.stderr is not before
    assert sys.stderr is before
    assert capfd.readouterr().err == "said\n"


def test_a_standard_error_without_a_descriptor_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with unwaited_stderr():
        assert sys.stderr is None


def test_what_standard_error_lost_is_told_where_nobody_waits_for_it(monkeypatch):
    def gone(_data):
        raise OSError

    stream = LogStream(gone)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(stream, write_through=True))
    assert lost_lines(7) == 0
    sys.stderr.write("one\ntwo\n")
    assert lost_lines(7) == 2
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert lost_lines(7) == 7
