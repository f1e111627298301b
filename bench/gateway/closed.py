"""Requests by wrk: connections that each ask again as soon as they were answered.

Bodies are one of eight system prompts, which many share, and a user's own words, which nobody sent before.
"""

import itertools
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from processes import OTHER_CORE

SIZES = {"2k": 1_600, "32k": 32_300}
_MARK = "#" * 14
_runs = itertools.count()


@dataclass(frozen=True)
class Answers:
    """What wrk saw: good answers a second, good and other answers, latencies in ms."""

    rate: float
    good: int
    bad: int
    p50_ms: float
    p99_ms: float


def ask(script: Path, port: int, connections: int, seconds: float) -> Answers:
    """Ask for so long from the other core."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    load = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(script), url]
    command = ["taskset", "-c", OTHER_CORE, "wrk", *load, "--", str(next(_runs))]
    return read(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def read(text: str) -> Answers:
    """wrk's report. Answers that are not 2xx or 3xx and broken connections are no requests served."""
    done, refused = int(_found(r"(\d+) requests in", text)), int(_found(r"Non-2xx or 3xx responses: (\d+)", text))
    broken = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", text)))
    rate = float(_found(r"Requests/sec: +([\d.]+)", text)) * (done - refused) / max(done, 1)
    p50, p99 = _milliseconds(r"50% +(\S+)", text), _milliseconds(r"99% +(\S+)", text)
    return Answers(rate, done - refused, refused + broken, p50, p99)


def script(size: int) -> str:
    """A wrk script: 256 bodies, with the number of the run and of the request within them."""
    listed = ",\n".join(f"[==[{_body(place, size)}]==]" for place in range(256))
    return f"""local bodies = {{ {listed} }}
local before, after, at, run = {{}}, {{}}, 0, 0
function init(args)
  run = tonumber(args[1]) or 0
  for i, body in ipairs(bodies) do
    local headers = {{["Content-Type"]="application/json", ["Authorization"]="Bearer x"}}
    local whole = wrk.format("POST", nil, headers, body)
    local from, to = whole:find("{_MARK}", 1, true)
    before[i], after[i] = whole:sub(1, from - 1), whole:sub(to + 1)
  end
end
function request()
  at = at + 1
  local i = at % #before + 1
  return before[i] .. string.format("%04d%010d", run, at) .. after[i]
end
"""


def _body(place: int, size: int) -> str:
    system = "You are a careful assistant. " * (size // 60) + str(place % 8)
    asked = f"Question {_MARK}: " + f"what is the answer to {place}? " * (size // 20)
    user = {"role": "user", "content": asked[: size - len(system)]}
    messages = [{"role": "system", "content": system}, user]
    return json.dumps({"model": "m", "max_tokens": 64, "temperature": 0.7, "messages": messages})


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else "0"


def _milliseconds(pattern: str, text: str) -> float:
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)?", _found(pattern, text)).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, None: 1.0}[unit]
