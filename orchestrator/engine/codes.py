"""Stable codes of errors in rows and of verdicts in logs."""

from typing import Final

# Why a step failed.
AGENT_ERROR: Final = "agent_error"  # the agent raised; the details hold its type and traceback
BRANCHES_FAILED: Final = "branches_failed"  # a block: at least one branch failed
ITERATIONS_FAILED: Final = "iterations_failed"  # a loop: at least one iteration failed
NOT_A_COLLECTION: Final = "not_a_collection"  # a loop: what it should go through is no array
TOO_MANY_ITERATIONS: Final = "too_many_iterations"  # a loop: its collection is longer than max_iterations
SUB_WORKFLOW_FAILED: Final = "sub_workflow_failed"  # its run failed or was refused; the details hold why
SUB_WORKFLOW_CANCELLED: Final = "sub_workflow_cancelled"  # somebody cancelled its run
SUB_WORKFLOW_CYCLE: Final = "sub_workflow_cycle"  # its workflow is one of those that led to it
SUB_WORKFLOW_TOO_DEEP: Final = "sub_workflow_too_deep"
CONDITION_FAILED: Final = "condition_failed"  # the condition cannot be evaluated
REFERENCE_BROKEN: Final = "reference_broken"  # its input refers to something that is not there
PAYLOAD_TOO_LARGE: Final = "payload_too_large"  # its task exceeds what the broker takes
INVALID_INPUT: Final = "invalid_input"  # it does not fit what the agent declared
TIMEOUT: Final = "timeout"  # the attempt took too long
QUEUE_TIMEOUT: Final = "queue_timeout"  # no worker took it in time
BRANCH_TIMEOUT: Final = "branch_timeout"  # the branch took too long
HEARTBEAT_TIMEOUT: Final = "heartbeat_timeout"  # its worker was silent for too long
UNKNOWN_AGENT: Final = "unknown_agent"  # no worker ever declared the agent's queue
WORKER_LOST: Final = "worker_lost"  # each worker that took its task was lost, or the broker gave the task up

# Why a run ended without an output.
CANCELLED: Final = "cancelled"
STEP_FAILED: Final = "step_failed"
RUN_TIMEOUT: Final = "run_timeout"

# Why an input was not applied.
UNKNOWN_RUN: Final = "unknown_run"
FORGED_REQUEST: Final = "forged_request"  # for a sub-workflow, and not from an orchestrator
FORGED_RESULT: Final = "forged_result"  # its sender does not serve the agent of the attempt
UNKNOWN_TASK: Final = "unknown_task"  # of an attempt that is over, or forged
DUPLICATE_RESULT: Final = "duplicate_result"
HEARD_FROM: Final = "heard_from"  # the attempt that seemed lost has spoken, or was sent again
LATE_REPORT: Final = "late_report"  # the step or its run has ended otherwise
RUN_ID_CONFLICT: Final = "run_id_conflict"  # the id belongs to a run of another request
NOT_AWAITED: Final = "not_awaited"  # no step waits, or waits any more, for the run that is asked for
RUN_IS_FINAL: Final = "run_is_final"
RUN_GOES_ON: Final = "run_goes_on"  # it cannot be retried before it has ended
RUN_COMPLETED: Final = "run_completed"  # nothing of it is left to be retried
ALREADY_DISPATCHED: Final = "already_dispatched"
NOT_WAITING: Final = "not_waiting"  # the next attempt has begun, or its time has not come
NO_FREE_SLOT: Final = "no_free_slot"
WAITS_FOR_SLOT: Final = "waits_for_slot"
BRANCH_IS_OVER: Final = "branch_is_over"
