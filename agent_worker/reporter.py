"""Sends reports, and settles the tasks whose result is confirmed: the result first, then the ack, never the reverse.

While one publish is in flight the reports that finish meanwhile collect; the next publish takes them all. So a busy
worker pays one round trip for many results, and an idle one waits for nothing.
"""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Final

import structlog
from tenacity import AsyncRetrying, retry_if_result, wait_random_exponential

from agent_worker.attempts import Attempt, ack
from agent_worker.reports import REPORT_TYPE
from messaging.crash_points import reach
from messaging.port import Broker, OutgoingMessage, PublishOutcome
from messaging.topology import RESULTS_EXCHANGE, result_key
from messaging.tracing.context import headers_of

LONGEST_PAUSE: Final = 2.0  # seconds between tries to send a result

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """An encoded AgentResult on its way."""

    attempt: Attempt
    body: bytes
    final: bool  # it ends the attempt, so it is sent until it is confirmed; signs of life are sent once


class Reporter:
    """Publishes the reports of one worker.

    Args:
        broker: Connected.
        confirmed: Called with each final report that is with the broker, before its deliveries are acked.
        too_large: Returns the report to send instead of one that the broker does not take.
    """

    def __init__(
        self, broker: Broker, *, confirmed: Callable[[Report], None], too_large: Callable[[Report], Report]
    ) -> None:
        self._broker = broker
        self._confirmed = confirmed
        self._too_large = too_large
        self._waiting: list[Report] = []
        self._wanted = asyncio.Event()
        self._message_ids = (f"{secrets.token_hex(8)}-{number}" for number in itertools.count(1))
        self._troubled = False
        self._retrying = AsyncRetrying(
            retry=retry_if_result(bool), wait=wait_random_exponential(multiplier=0.1, max=LONGEST_PAUSE)
        )

    def send(self, report: Report) -> None:
        """Have *report* sent; never waits."""
        self._waiting.append(report)
        self._wanted.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wanted.wait()
            if await self.run_once():
                await self._retrying(self.run_once)

    async def run_once(self) -> bool:
        """Send what waits and settle what is confirmed; return whether results must be sent again after a pause."""
        self._wanted.clear()
        reports, self._waiting = self._waiting, []
        reach("worker.before_publish", reports)
        outcomes = await self._broker.publish([self._message(report) for report in reports])
        reach("worker.published", reports)
        results = [(report, outcome) for report, outcome in zip(reports, outcomes, strict=True) if report.final]
        await self._settle([report for report, outcome in results if outcome is PublishOutcome.CONFIRMED])
        failed = [(report, outcome) for report, outcome in results if outcome is not PublishOutcome.CONFIRMED]
        self._waiting = [self._again(report, outcome) for report, outcome in failed] + self._waiting
        self._tell({outcome for _, outcome in failed if outcome is not PublishOutcome.TOO_LARGE})
        return bool(failed)

    def _message(self, report: Report) -> OutgoingMessage:
        return OutgoingMessage(
            exchange=RESULTS_EXCHANGE,
            routing_key=result_key(report.attempt.task.agent_name),
            type=REPORT_TYPE,
            message_id=next(self._message_ids),  # a new one for each try: returns are matched by it
            body=report.body,
            headers=headers_of(report.attempt.traceparent),
        )

    async def _settle(self, ended: Sequence[Report]) -> None:
        for report in ended:
            self._confirmed(report)
        await ack(held for report in ended for held in report.attempt.held)
        reach("worker.acked", ended)
        for report in ended:
            report.attempt.on_settled(report.attempt)

    def _again(self, report: Report, outcome: PublishOutcome) -> Report:
        return self._too_large(report) if outcome is PublishOutcome.TOO_LARGE else report

    def _tell(self, outcomes: Set[PublishOutcome]) -> None:
        """Log when sending begins to fail and when it works again, not every try."""
        if not outcomes and self._troubled:
            log.info("Results are confirmed again", action="results_confirmed")
        elif PublishOutcome.RETURNED in outcomes and not self._troubled:
            log.warning(
                "No queue takes results yet; they are kept and sent again until an orchestrator has declared it",
                action="results_returned",
                exchange=RESULTS_EXCHANGE,
            )
        elif outcomes and not self._troubled:
            log.warning(
                "Results were not confirmed; they are kept and sent again",
                action="results_unconfirmed",
                outcomes=sorted(outcomes),
            )
        self._troubled = bool(outcomes)
