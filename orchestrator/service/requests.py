"""What the runs queue holds: RunRequests, checked at the door.

A client that named a `reply_to` gets every refusal as a RunResult with status REJECTED. Where nobody can be told, and
where the body cannot even be read, the request goes to the dead letters.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from messaging.port import DeadLetterReason, Delivery
from orchestrator.engine import codes
from orchestrator.engine.compilation import compile_plan
from orchestrator.engine.decision import Verdict
from orchestrator.engine.inputs import ExternalInput, RunRequested
from orchestrator.engine.records import ReplyAddress
from orchestrator.errors import UnknownWorkflow
from orchestrator.service.batch import Answer
from orchestrator.service.identities import Identities
from orchestrator.service.intake import Handled, Item, Refused
from orchestrator.service.plans import PlanCache
from orchestrator.service.refusals import Refusals
from orchestrator.service.senders import reply_address, requester_address, run_id_of
from orchestrator.service.traces import RunTraces
from orchestrator.storage.definitions import definition_id, digest
from orchestrator.storage.port import Storage
from schemas.codec import decode
from schemas.errors import MessageRefused, WorkflowInvalid
from schemas.messages import ErrorInfo, RunRequest
from schemas.validation import parse_workflow

LARGE_BODY: Final = 256 * 1024  # checked in a thread, so that leases and heartbeats go on meanwhile
KNOWN_DEFINITIONS: Final = 10_000


class RequestReader:
    """Reads RunRequests; where there are identities, those for sub-workflows come from orchestrators alone."""

    def __init__(
        self,
        storage: Storage,
        refusals: Refusals,
        plans: PlanCache,
        traces: RunTraces,
        identities: Identities | None = None,
    ) -> None:
        self._storage = storage
        self._refusals = refusals
        self._plans = plans
        self._traces = traces
        self._identities = identities
        self._stored: dict[str, tuple[str, str]] = {}  # definitions that are in the database: their id and version

    async def read(self, delivery: Delivery) -> ExternalInput:
        """Return the request for a run of a valid, stored definition."""
        try:
            request = decode(RunRequest, delivery.body)
        except MessageRefused as refused:
            await self._refusals.tell(reply_address(delivery), None, ErrorInfo(code=refused.code, message=str(refused)))
            raise Refused(DeadLetterReason(refused.code, str(refused))) from refused
        client = self._client(delivery, request)
        run_id = request.run_id or run_id_of(delivery)
        try:
            definition, workflow_id, version = await self._definition(request, large=len(delivery.body) > LARGE_BODY)
        except (WorkflowInvalid, UnknownWorkflow) as error:
            await self._refusals.refuse(client, run_id, _error(error))
            raise Handled from error
        return RunRequested(
            run_id=run_id,
            definition_id=definition,
            workflow_id=workflow_id,
            workflow_version=version,
            request_digest=_request_digest(request, definition),
            input=request.input,
            labels=request.labels or {},
            reply=client,
            parent_run_id=request.parent_run_id,
            traceparent=self._traces.begin(delivery.headers, run_id),
        )

    async def answered(self, item: Item, answer: Answer) -> None:
        """Tell of a conflict, or that nobody waits; everything else is told by the run itself."""
        request = item.event
        assert isinstance(request, RunRequested), "nothing else is read here"
        if answer.verdict is Verdict.REJECTED and answer.code == codes.NOT_AWAITED:
            message = "no step of the run that parent_run_id names waits for this one: it was cancelled, or timed out"
            await self._refusals.refuse(request.reply, request.run_id, ErrorInfo(code=answer.code, message=message))
        if answer.verdict is Verdict.REJECTED and answer.code == codes.RUN_ID_CONFLICT:
            message = "there is a run with this run_id and another body: choose another id, or repeat the same request"
            await self._refusals.refuse(request.reply, request.run_id, ErrorInfo(code=answer.code, message=message))

    async def failed(self, delivery: Delivery, reason: DeadLetterReason) -> None:
        """Tell the client, where there is one that waits."""
        try:
            client = self._client(delivery, decode(RunRequest, delivery.body))
        except Exception:  # what has met a bug may meet it again here
            client = None
        await self._refusals.tell_of_bug(client, reason)

    def _client(self, delivery: Delivery, request: RunRequest) -> ReplyAddress | None:
        if request.parent_run_id is not None and self._identities is not None:
            self._identities.require_our_request(delivery)
        return requester_address(delivery, request)

    async def _definition(self, request: RunRequest, *, large: bool) -> tuple[str, str, str]:
        if request.workflow is None:
            assert request.workflow_id is not None, "the contract asks for one of the two"
            identity, version = await self._storage.find_definition(request.workflow_id, request.workflow_version)
            return identity, request.workflow_id, version
        document = request.workflow
        identity = definition_id(document)
        known = self._stored.get(identity)
        if known is None:
            known = await (self._store(document) if not large else self._store_large(document))
            self._remember(identity, known)
        return identity, *known

    async def _store(self, document: Mapping[str, Any]) -> tuple[str, str]:
        workflow = parse_workflow(document)
        identity = await self._storage.store_definition(workflow, document)
        self._plans.put(identity, compile_plan(workflow))
        return workflow.workflow_id, workflow.version

    async def _store_large(self, document: dict[str, Any]) -> tuple[str, str]:
        workflow = await asyncio.to_thread(parse_workflow, document)
        identity = await self._storage.store_definition(workflow, document)
        document.clear()  # it is most of what a large request takes, and nobody reads it any more: room for the plan
        self._plans.put(identity, await asyncio.to_thread(compile_plan, workflow))
        return workflow.workflow_id, workflow.version

    def _remember(self, identity: str, known: tuple[str, str]) -> None:
        if len(self._stored) >= KNOWN_DEFINITIONS:
            self._stored.clear()
        self._stored[identity] = known


def _request_digest(request: RunRequest, definition: str) -> str:
    # A workflow that is named, rather than given, may have a newer definition when the request is repeated.
    named = request.workflow_id is not None
    workflow = [request.workflow_id, request.workflow_version] if named else definition
    parent = [str(request.parent_run_id)] if request.parent_run_id is not None else []
    return digest([workflow, request.input, request.labels, *parent])


def _error(error: WorkflowInvalid | UnknownWorkflow) -> ErrorInfo:
    if isinstance(error, UnknownWorkflow):
        return ErrorInfo(code="unknown_workflow", message=str(error))
    problems = [
        {"place": p.place, "code": p.code, "message": p.message, "suggestion": p.suggestion} for p in error.problems
    ]
    return ErrorInfo(code="invalid_workflow", message=str(error), details={"problems": problems})
