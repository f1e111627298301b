"""Reads the cloud's metadata service for notices that this machine will go (what answers mean: sheaf_engine.notices).

Each question is asked in a loop of its own that nothing ends: an answer that does not come, is too long, too slow or
cannot be understood is asked for again, later and later up to a bound. One line is logged when the service has failed
twice in a row, and one when it answers again.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping

import structlog
from sheaf_crds.agent_api import AgentNotice

from sheaf_engine.agent.config import NoticesConfig
from sheaf_engine.agent.metadata_calls import MetadataCalls, MetadataError
from sheaf_engine.agent.metrics import Metrics
from sheaf_engine.notices.clouds import CLOUDS, Question
from sheaf_engine.notices.settle import heard, told
from sheaf_engine.notices.values import Notice, UnreadableError

FIRST_DELAY, LONGEST_DELAY = 0.25, 4.0
SHORTEST_PAUSE = 0.05
FAILURES_TOLD = 2

log = structlog.get_logger()


class Metadata:
    """Asks everything that a cloud can say; `tell` hears the notice that counts, before each question and after
    each answer. `pace` scales every pause."""

    def __init__(
        self,
        config: NoticesConfig,
        tell: Callable[[AgentNotice | None], None],
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
        pace: float = 1.0,
    ) -> None:
        self._config, self._tell, self._metrics, self._clock, self._pace = config, tell, metrics, clock, pace
        self._cloud = CLOUDS[config.cloud]
        self._known: Mapping[str, Notice] = {}
        self._answered: set[str] = set()
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Ask until cancelled."""
        log.info("notices are read", cloud=self._config.cloud, endpoint=self._config.endpoint)
        calls = MetadataCalls(self._cloud, self._config.endpoint, self._clock)
        try:
            async with asyncio.TaskGroup() as group:
                for question in self._cloud.questions:
                    group.create_task(self._follow(calls, question))
        finally:
            await calls.close()

    async def _follow(self, calls: MetadataCalls, question: Question) -> None:
        failures, etag = 0, ""
        while True:
            began, before = time.monotonic(), etag
            try:
                self._look()
                etag = await self._hear(calls, question, before)
                failures = 0
            except (MetadataError, UnreadableError) as error:
                failures, etag = failures + 1, ""
                self._note_failure(question, failures, str(error))
            except Exception as error:
                failures, etag = failures + 1, ""
                if failures <= FAILURES_TOLD:
                    log.exception("reading notices failed unexpectedly")
                self._note_failure(question, failures, repr(error)[:300])
            took = question.period if etag != before else time.monotonic() - began
            await asyncio.sleep(self._pace * _pause(question, failures, took))

    async def _hear(self, calls: MetadataCalls, question: Question, etag: str) -> str:
        answer, version = await calls.ask(question, etag, first=question.path not in self._answered)
        notice = question.read(answer, calls.machine)
        self._known = heard(self._known, question.path, notice)
        self._note_answer(question)
        self._look()
        return version

    def _look(self) -> None:
        """Tell what counts now: a deadline that was far away may have come near."""
        heed = self._config.rebalance == "Replace"
        found = told(self._known.values(), self._clock(), heed_advice=heed)
        self._tell(None if found is None else _as_told(self._config.cloud, found))

    def _note_failure(self, question: Question, failures: int, error: str) -> None:
        if failures < FAILURES_TOLD or question.path in self._failing:
            return
        if not self._failing:
            facts = {"cloud": self._config.cloud, "endpoint": self._config.endpoint, "path": question.path}
            log.warning("the metadata service cannot be read", **facts, error=error, mend=self._cloud.mend)
        self._failing.add(question.path)
        self._show()

    def _note_answer(self, question: Question) -> None:
        self._answered.add(question.path)
        if question.path in self._failing:
            self._failing.discard(question.path)
            if not self._failing:
                log.info("the metadata service can be read again", cloud=self._config.cloud)
        self._show()

    def _show(self) -> None:
        self._metrics.metadata.labels(self._config.cloud).set(not self._failing)


def _pause(question: Question, failures: int, took: float) -> float:
    """Seconds until the next question; hardly any where the answer was held, or can be held from now on."""
    if failures:
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)  # noqa: S311
    return max(SHORTEST_PAUSE, question.period - took)


def _as_told(cloud: str, notice: Notice) -> AgentNotice:
    deadline = max(0.0, notice.deadline or 0.0)
    return AgentNotice(
        source=cloud, reason=notice.reason, message=notice.message, deadline=deadline, advisory=notice.advisory
    )
