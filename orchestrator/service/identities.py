"""Who may report for which agents: RabbitMQ vouches for the user in a message's `user_id`.

RabbitMQ closes the channel of whoever publishes under another user's name (AMQP 0-9-1, property `user-id`), and lets
messages without one pass. So an operator who names the workers' users here has reports refused that are unsigned, or
signed by somebody who does not serve the agent of the attempt. What orchestrators say to each other, about the runs of
sub-workflows, is heard from nobody else then.
"""

from collections.abc import Mapping, Set

import structlog

from messaging.port import DeadLetterReason, Delivery
from orchestrator.engine import codes
from orchestrator.service.intake import Refused

log = structlog.get_logger(__name__)


class Identities:
    """The users that may report, and for which agents.

    Args:
        workers: The agents that each user serves.
        ours: The user of the orchestrators: requests for sub-workflows and their results come from them alone.
    """

    def __init__(self, workers: Mapping[str, Set[str]], ours: str) -> None:
        self._workers = {user: frozenset(agents) for user, agents in workers.items()}
        self._ours = ours

    def agents_of(self, delivery: Delivery) -> frozenset[str]:
        """Return the agents for which the sender of a report may speak. Raises Refused where it is no worker."""
        agents = self._workers.get(delivery.user_id or "")
        if agents is None:
            raise forged_result(delivery, "only users in FORKJOIN_WORKER_USERS may report")
        return agents

    def require_our_result(self, delivery: Delivery) -> None:
        """Raise Refused unless an orchestrator has sent this RunResult."""
        if delivery.user_id != self._ours:
            raise forged_result(delivery, "only orchestrators tell how a run has ended")

    def require_our_request(self, delivery: Delivery) -> None:
        """Raise Refused unless an orchestrator has sent this request for a sub-workflow."""
        if delivery.user_id != self._ours:
            raise _forged(codes.FORGED_REQUEST, delivery, "only orchestrators ask for runs of sub-workflows")


def forged_result(delivery: Delivery, why: str) -> Refused:
    """Tell of a forged report, for whoever looks after security, and return how it ends."""
    return _forged(codes.FORGED_RESULT, delivery, why)


def _forged(code: str, delivery: Delivery, why: str) -> Refused:
    sender = f"signed by {delivery.user_id}" if delivery.user_id else "not signed"
    log.warning(
        "A message is refused: its sender may not send it",
        action="forged_message",
        code=code,
        security=True,
        user_id=delivery.user_id,
        routing_key=delivery.routing_key,
        message_id=delivery.message_id,
        why=why,
    )
    return Refused(DeadLetterReason(code, f"it is {sender}, and {why}"))
