"""What replicas tell each other: messages that are no part of the public contract."""

from uuid import UUID

from schemas.messages import ExecutionId, Message


class GateTicket(Message):
    """A branch that waits at the gate of its block; it lies in the block's gate queue."""

    run_id: UUID
    block_id: ExecutionId
    step_id: ExecutionId


class GateNotice(Message):
    """Tell the holder of a gate what a transaction changed. Should it be lost, the holder's reconciliation sees it."""

    run_id: UUID
    block_id: ExecutionId
    ended: list[ExecutionId]
    dispatched: list[ExecutionId]
    block_over: bool  # the block itself has ended: its gate can be closed
