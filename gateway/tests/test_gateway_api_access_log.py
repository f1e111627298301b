"""The access log: every request is one JSON line, written once a turn, and a log that cannot be written stops nobody."""

import asyncio
import json
from datetime import UTC, datetime

from gateway_fixtures import ask, chat, make_world  # noqa: F401
from sheaf_gateway.api.access import MOST, AccessLog, Line


def line(number: int) -> Line:
    return Line(f"req-{number}", "/v1/chat/completions", 200, None, "base", pod="base-0", attempts=1, total_ms=1.5)


async def test_the_lines_of_a_turn_are_written_at_once_at_its_end():
    written = []
    log = AccessLog(asyncio.get_running_loop(), written.append)
    log.add(line(1))
    log.add(line(2))
    assert written == []
    await asyncio.sleep(0)
    (only,) = written
    assert only.endswith(b"\n")
    found = [json.loads(text) for text in only.splitlines()]
    assert [one["request_id"] for one in found] == ["req-1", "req-2"]
    assert {one["event"] for one in found} == {"request"}
    assert all(one["timestamp"].endswith("Z") and one["level"] == "info" for one in found)


async def test_lines_tell_the_time_in_utc_also_when_a_second_has_passed():
    written = []
    log = AccessLog(asyncio.get_running_loop(), written.append)
    for wait in (0.0, 0.001, 1.0):
        await asyncio.sleep(wait)
        before = datetime.now(UTC)
        log.add(line(1))
        log.flush()
        assert before <= datetime.fromisoformat(json.loads(written[-1])["timestamp"]) <= datetime.now(UTC)


async def test_a_line_break_in_a_value_stays_within_its_line():
    written = []
    log = AccessLog(asyncio.get_running_loop(), written.append)
    log.add(Line("a\nb", "/", 200, None))
    log.flush()
    assert written[0].count(b"\n") == 1


async def test_many_lines_do_not_wait_for_the_end_of_the_turn():
    written = []
    log = AccessLog(asyncio.get_running_loop(), written.append)
    for number in range(MOST + 1):
        log.add(line(number))
    assert written[0].count(b"\n") == MOST
    log.flush()
    assert written[1].count(b"\n") == 1


async def test_a_log_that_cannot_be_written_is_counted_and_stops_nobody():
    def full(_data: bytes) -> None:
        raise OSError(28, "No space left on device")

    log = AccessLog(asyncio.get_running_loop(), full)
    log.add(line(1))
    log.flush()
    assert log.lost == 1


async def test_every_request_has_its_line_refused_ones_too(make_world, ask):  # noqa: F811
    world = await make_world()
    written = []
    world.gateway.inference.access = AccessLog(asyncio.get_running_loop(), written.append)
    await ask(world, "POST", "/v1/chat/completions", chat())
    await ask(world, "POST", "/v1/chat/completions", chat("nobody"))
    await world.until(lambda: b"".join(written).count(b"\n") == 2)
    good, bad = (json.loads(text) for text in b"".join(written).splitlines())
    assert (good["status"], good["served"], good["attempts"]) == (200, "base", 1)
    assert good["pod"].startswith("base-")
    assert (bad["status"], bad["code"]) == (404, "model_not_found")
