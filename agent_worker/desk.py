"""Where the tasks of all agents of one worker are worked on.

The consumers bring deliveries here; the desk decides whether a task is new, runs it, and hands the report over. It
knows a task from its first delivery until its result is confirmed (an open attempt), and its answer for a while after.
"""

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from agent_worker.attempts import AnswerMemory, Attempt, Held
from agent_worker.cancelled_work import CancelledWork
from agent_worker.colleagues import Colleagues, Whereabouts
from agent_worker.context import AgentContext
from agent_worker.execution import Executor, Outcome, task_ids
from agent_worker.failures import worker_error
from agent_worker.options import WorkerOptions
from agent_worker.pulse import AttemptPulse, PulseTiming, Rhythm
from agent_worker.registry import Agent, AgentRegistry
from agent_worker.reporter import Report, Reporter
from agent_worker.reports import ReportWriter
from agent_worker.suspects import SUSPECT_FROM, Suspects
from agent_worker.tracing import AttemptTracing, end_span
from messaging.crash_points import reach
from messaging.port import Broker
from messaging.telemetry import about
from schemas.messages import AgentTask
from schemas.statuses import ReportStatus
from schemas.worker_codes import WorkerErrorCode

SIGNS_WITHIN_PATIENCE: Final = 3  # so many signs of life within the heartbeat timeout of an attempt
STAND_BY: Final = 2.0  # seconds between questions about a task that another worker runs

log = structlog.get_logger(__name__)


# Told of each attempt that ends, and how: its outcome, or None where it was cancelled with its run.
Observer = Callable[[Attempt, Outcome | None], None]


class Desk:
    """What the consumers of one worker share."""

    def __init__(
        self,
        broker: Broker,
        registry: AgentRegistry,
        options: WorkerOptions,
        observer: Observer | None = None,
        tracing: AttemptTracing | None = None,
    ) -> None:
        self._observer = observer
        self._tracing = tracing if tracing is not None else AttemptTracing()
        self.reporter = Reporter(broker, confirmed=self._close, too_large=self._too_large)
        self.cancel_grace = options.cancel_grace
        self.cancelled = CancelledWork()
        self._registry = registry
        self._options = options
        self._writer = ReportWriter(options.worker_id, options.max_result_bytes)
        self._rhythm = Rhythm(PulseTiming(options.report_started_after, options.heartbeat_interval))
        self._executor = Executor(cancel_grace=options.cancel_grace)
        self._open: dict[int, Attempt] = {}  # by the numbers of their tasks' ids: UUIDs hash slowly
        self._answers = AnswerMemory()
        self._suspects = Suspects()
        self.colleagues = Colleagues(broker, self.whereabouts)

    def admit(self, task: AgentTask, held: Held, on_settled: Callable[[Attempt], None]) -> Attempt | None:
        """Open an attempt for a task and return it, or return None when one is open already and took the delivery.

        An attempt without an answer is to be worked on. One that has an answer was finished here before; that answer
        is on its way again.
        """
        if (known := self._open.get(task.task_id.int)) is not None:
            self._attach(known, held)
            return None
        attempt = self._open[task.task_id.int] = Attempt(task, [held], on_settled)
        if (answer := self._answers.recall(task.task_id)) is not None:
            log.info("A task came again; it is answered from memory", action="answered_from_memory", **task_ids(task))
            self._send_final(attempt, answer)
        return attempt

    def drop(self, attempt: Attempt) -> None:
        """Forget an attempt without a result, before its deliveries are acked or go back to the broker."""
        attempt.dropped = True
        del self._open[attempt.task.task_id.int]

    def cancel(self, attempt: Attempt) -> None:
        """Note that nobody waits any more for an attempt whose agent runs."""
        attempt.cancel()
        end_span(attempt)
        if self._observer is not None:
            self._observer(attempt, None)

    def whereabouts(self, task_id: UUID) -> Whereabouts:
        """Return what a colleague should know of a task: whether it runs here, or was finished here."""
        if (known := self._open.get(task_id.int)) is not None:
            return Whereabouts.NOWHERE if known.untouched else Whereabouts.RUNNING
        return Whereabouts.NOWHERE if self._answers.recall(task_id) is None else Whereabouts.FINISHED

    async def work(self, attempt: Attempt) -> None:
        """Run the attempt and have its result sent, unless it is given up or cancelled before.

        An agent that ignores its timeout is reported and goes on, and so does this; its attempt is settled meanwhile.
        """
        if not attempt.came_again:
            await self._answer(attempt)
        elif await self._finished_elsewhere(attempt):
            await self._leave(attempt)
        elif (count := attempt.earlier_deliveries) >= self._options.max_deliveries:
            self._finish(attempt, _came_too_often(count))
        elif count >= SUSPECT_FROM:
            await self._answer_suspect(attempt, count)
        else:
            await self._answer(attempt)

    def close(self) -> None:
        """Let go of idle threads."""
        self._executor.close()

    async def _finished_elsewhere(self, attempt: Attempt) -> bool:
        """Wait while another worker has the task; return whether its result is there, or else nobody has it."""
        found = await self.colleagues.ask(attempt.task)
        if found is Whereabouts.RUNNING:
            log.warning(
                "A task came here while another worker runs it; it waits, and is not started twice. Was that worker's "
                "connection lost, or is the broker's consumer_timeout shorter than the task?",
                action="stands_by",
                setting="consumer_timeout",
                **task_ids(attempt.task),
            )
        while found is Whereabouts.RUNNING:
            await asyncio.sleep(STAND_BY)
            found = await self.colleagues.ask(attempt.task)
        return found is Whereabouts.FINISHED

    async def _leave(self, attempt: Attempt) -> None:
        log.info("Another worker has finished the task", action="finished_elsewhere", **task_ids(attempt.task))
        self.drop(attempt)
        await attempt.settle()

    async def _answer_suspect(self, attempt: Attempt, count: int) -> None:
        """Work on a task that keeps coming back: it may be one that kills its process."""
        log.warning(
            "A task came back often; it runs alone", action="suspect_task", deliveries=count, **task_ids(attempt.task)
        )
        await self._suspects.begin(attempt.task.task_id, count)
        tell = attempt.on_settled

        def settled(attempt: Attempt) -> None:
            self._suspects.end()
            tell(attempt)

        attempt.on_settled = settled
        await self._answer(attempt)

    async def _answer(self, attempt: Attempt) -> None:
        agent = self._registry.get(attempt.task.agent_name)
        if agent is None:
            self._finish(attempt, _unknown_agent(attempt.task, self._registry))
            return
        attempt.start()
        about(partial(task_ids, attempt.task))
        self._tracing.begin(attempt)
        reach("worker.agent_started", agent.name)
        pulse = attempt.pulse = AttemptPulse(
            lambda status: self._sign_of_life(attempt, status), self._rhythm, _longest_silence(attempt.task)
        )
        try:
            self._ended(attempt, await self._outcome(agent, attempt, pulse))
        finally:
            end_span(attempt)
            pulse.stop()
            attempt.pulse = None  # each knows the other: left together they would be garbage that only a search finds

    async def _outcome(self, agent: Agent, attempt: Attempt, pulse: AttemptPulse) -> Outcome:
        try:
            context = self._context(attempt.task, pulse) if agent.signature.context_name else None
            abandoned = partial(self._abandoned, attempt, pulse)
            return await self._executor.execute(agent, attempt.task, context, abandoned)
        except Exception as error:
            log.exception("The worker failed, not the agent", action="worker_bug", **task_ids(attempt.task))
            return _bug(error)

    def _abandoned(self, attempt: Attempt, pulse: AttemptPulse, outcome: Outcome) -> None:
        pulse.stop()
        self._ended(attempt, outcome)

    def _ended(self, attempt: Attempt, outcome: Outcome) -> None:
        if attempt.given_up or attempt.cancelled or attempt.answer is not None:
            return  # too late
        reach("worker.agent_ended", attempt.task.agent_name)
        self._finish(attempt, outcome)

    def _context(self, task: AgentTask, pulse: AttemptPulse) -> AgentContext:
        return AgentContext(
            agent_name=task.agent_name,
            run_id=task.run_id,
            step_id=task.step_id,
            task_id=task.task_id,
            attempt=task.attempt,
            parent_step_id=task.parent_step_id,
            branch_name=task.branch_name,
            worker_id=self._options.worker_id,
            pulse=pulse,
        )

    def _sign_of_life(self, attempt: Attempt, status: ReportStatus) -> None:
        body = self._writer.sign_of_life(attempt.task, status, attempt.started_at or attempt.start())
        self.reporter.send(Report(attempt, body, final=False))

    def _finish(self, attempt: Attempt, outcome: Outcome) -> None:
        end_span(attempt, outcome)
        if self._observer is not None:
            self._observer(attempt, outcome)
        if outcome.error is not None:
            log.warning(
                "An attempt failed",
                action="attempt_failed",
                error_type=outcome.error.type,
                error=outcome.error.message,
                **task_ids(attempt.task),
            )
        self._send_final(attempt, self._final(attempt, outcome))

    def _final(self, attempt: Attempt, outcome: Outcome) -> bytes:
        return self._writer.final(attempt.task, outcome, attempt.started_at, attempt.outlived_timeout)

    def _send_final(self, attempt: Attempt, body: bytes) -> None:
        attempt.answer = body
        self.reporter.send(Report(attempt, body, final=True))

    def _attach(self, attempt: Attempt, held: Held) -> None:
        attempt.held.append(held)
        log.warning(
            "A task came again while it is in progress here; it is not started twice. Was the connection lost, or is "
            "the broker's consumer_timeout shorter than the task?",
            action="attached_to_attempt",
            setting="consumer_timeout",
            **task_ids(attempt.task),
        )

    def _close(self, report: Report) -> None:
        del self._open[report.attempt.task.task_id.int]
        self._answers.remember(report.attempt.task.task_id, report.body)

    def _too_large(self, report: Report) -> Report:
        attempt = report.attempt
        body = self._writer.refused_by_broker(attempt.task, len(report.body), attempt.started_at)
        return Report(attempt, body, final=True)


def _longest_silence(task: AgentTask) -> float:
    patience = task.heartbeat_timeout_seconds
    return patience / SIGNS_WITHIN_PATIENCE if patience is not None else math.inf


def _unknown_agent(task: AgentTask, registry: AgentRegistry) -> Outcome:
    message = f'this worker has no agent "{task.agent_name}"; it has {", ".join(registry.names)}'
    return Outcome(error=worker_error(WorkerErrorCode.UNKNOWN_AGENT, message))


def _came_too_often(count: int) -> Outcome:
    message = (
        f"the task was delivered {count} times and came back each time, as when the agent ends its own process or "
        "takes longer than the broker's consumer_timeout; it is not run again"
    )
    return Outcome(error=worker_error(WorkerErrorCode.WORKER_LOST, message, retryable=False))


def _bug(error: Exception) -> Outcome:
    return Outcome(error=worker_error(WorkerErrorCode.INTERNAL_ERROR, f"a bug in the worker: {error!r}"))
