"""The bounds within which a client may use the server. Sizes are bytes, times are seconds.

A body must arrive at a minimum rate, as Apache's mod_reqtimeout has it: a grace period, extended by each
byte that arrives, within a total; and it may never pause for longer than the idle bound. `max_bodies` counts a body
until its request is answered, for so long it is needed for another attempt; only what came in one read is not counted.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one client, and all of them together, may hold. Every default is meant for a public port."""

    max_connections: int = 16_384
    max_request_line: int = 8_192
    max_head: int = 32_768
    max_headers: int = 100
    max_body: int = 16 * 1024 * 1024
    max_bodies: int = 1024 * 1024 * 1024
    max_chunk_extension: int = 128
    max_pipelined: int = 65_536
    max_discarded: int = 1024 * 1024
    write_high: int = 65_536
    header_s: float = 10.0
    keep_alive_s: float = 75.0
    body_idle_s: float = 30.0
    body_grace_s: float = 30.0
    body_min_rate: float = 4_096.0
    body_total_s: float = 300.0
    write_stall_s: float = 60.0
    linger_s: float = 2.0

    def body_deadline(self, started: float, now: float, received: int) -> float:
        """Return when a body that began at `started` and has `received` bytes by `now` is too slow."""
        earned = started + self.body_grace_s + received / self.body_min_rate
        return min(now + self.body_idle_s, earned, started + self.body_total_s)

    def tick_s(self) -> float:
        """Return how often deadlines are looked at: a tenth of the shortest, within 10 ms and 1 s."""
        shortest = min(
            self.header_s, self.keep_alive_s, self.body_idle_s, self.body_grace_s, self.write_stall_s, self.linger_s
        )
        return min(max(shortest / 10, 0.01), 1.0)
