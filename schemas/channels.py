"""Where the messages travel: exchanges, queues and properties, as an AsyncAPI 3.0 document.

It is written from the orchestrator's side: it *receives* RunRequests and *sends* AgentTasks. The names are those of the
broker's topology; this package knows nothing of the broker, so a test compares the two.
"""

from typing import Any, Final

from schemas.messages import MESSAGES, Message

JsonObject = dict[str, Any]

_BINDING_VERSION: Final = "0.3.0"  # of AsyncAPI's AMQP bindings
_PERSISTENT: Final = 2

_PROPERTIES: Final = {
    "content_type": "application/json",
    "type": "The message's name.",
    "message_id": "Unique for each publish; a repeated message has a new one.",
    "delivery_mode": "2: the message survives a restart of the broker.",
}
_REQUEST_PROPERTIES: Final = {
    "reply_to": "Optional: the queue in which the client awaits the RunResult; none of the services'.",
    "correlation_id": "Optional: comes back on the RunResult.",
}
_TRACEPARENT: Final = {
    "type": "object",
    "properties": {
        "traceparent": {
            "type": "string",
            "description": "Optional: the W3C Trace Context that the message belongs to.",
        }
    },
}
_TRACED: Final = frozenset({"RunRequest", "RetryRun", "AgentTask", "AgentResult", "RunResult"})
_DEAD_LETTER_HEADERS: Final = {
    "x-forkjoin-reason": "A stable code.",
    "x-forkjoin-message": "What is wrong, where, and what would be right.",
    "x-forkjoin-queue": "The queue that it was taken from.",
    "x-forkjoin-exchange": "The exchange that it was published to.",
    "x-forkjoin-routing-key": "The key that it was published with.",
    "x-forkjoin-message-id": "Its message_id, where it had one.",
    "x-forkjoin-time": "When it was moved here, RFC 3339 in UTC.",
}


def async_api() -> JsonObject:
    """Return the AsyncAPI document; payloads are references to the JSON Schema files beside it."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "forkjoin",
            "version": f"{Message.VERSION}.0.0",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": {**{model.__name__: _message(model) for model in MESSAGES}, **_DEAD_LETTER}},
    }


_DESCRIPTION: Final = (
    "A distributed fork-join orchestrator for agent workflows: JSON over AMQP 0-9-1. Clients submit runs, workers "
    "carry out agent tasks, and anyone may follow events. Unknown fields in a message are ignored, unknown versions "
    "are refused; what cannot be processed lands in the dead letters. Times are RFC 3339 in UTC."
)


def _channels() -> JsonObject:
    agent = {"agent_name": {"description": "The name of an agent, as workflow steps give it."}}
    run = {"run_id": {"description": "The UUID of a run."}}
    return {
        "submit": _routed(
            "orchestrator.runs",
            "orchestrator.submit",
            "direct",
            "RunRequest",
            "Asks for a run; an empty key works too.",
        ),
        "runs": _queue(
            "orchestrator.runs", "RunRequest", "Where RunRequests wait; a client may publish to it by name."
        ),
        "replies": {
            "address": None,
            "description": "The queue that a RunRequest or a RetryRun names in reply_to, through the default exchange.",
            "messages": _messages("RunResult"),
        },
        "tasks": _routed(
            "{agent_name}", "orchestrator.tasks", "direct", "AgentTask", "One attempt of one step.", agent
        ),
        "agent": _queue("agent.{agent_name}", "AgentTask", "Where the tasks of one agent wait for its workers.", agent),
        "reports": _routed(
            "result.{agent_name}", "orchestrator.results", "topic", "AgentResult", "What workers report.", agent
        ),
        "results": _queue(
            "orchestrator.results",
            "AgentResult RunResult",
            "Where reports wait for the orchestrator, and the results of runs that carry out steps of others.",
        ),
        "gates": _routed(
            "{run_id}.{block_id}",
            "orchestrator.gates",
            "direct",
            None,
            "Branches of a block with max_parallelism. For orchestrators only; its messages may change.",
            {**run, "block_id": {"description": "The id of a parallel step."}},
        ),
        "commands": _queue("orchestrator.commands", "CancelRun RetryRun", "Commands about runs."),
        "cancellations": _routed(
            "cancelled",
            "orchestrator.workers",
            "topic",
            "RunCancelled BranchesCancelled",
            "Tells all workers of a cancelled run, or of a block that goes on without its open branches; a worker "
            "binds a queue of its own. Questions between workers go by the same exchange with other keys; they may "
            "change.",
        ),
        "events": _routed(
            "run.{run_id}",
            "orchestrator.events",
            "topic",
            "RunEvent",
            "Status changes; bind a queue of your own with run.<run_id>, or with run.# for all runs.",
            run,
        ),
        "deadLetters": _queue(
            "orchestrator.dead-letters", "DeadLetter", "What could not be processed, with the reason in its headers."
        ),
    }


def _routed(
    address: str, exchange: str, kind: str, message: str | None, description: str, parameters: JsonObject | None = None
) -> JsonObject:
    properties = {"name": exchange, "type": kind, "durable": True, "autoDelete": False}
    return _channel(address, message, description, parameters, {"is": "routingKey", "exchange": properties})


def _queue(name: str, message: str, description: str, parameters: JsonObject | None = None) -> JsonObject:
    properties = {"name": name, "durable": True, "exclusive": False, "autoDelete": False}
    return _channel(name, message, description, parameters, {"is": "queue", "queue": properties})


def _channel(
    address: str, message: str | None, description: str, parameters: JsonObject | None, binding: JsonObject
) -> JsonObject:
    return {
        "address": address,
        "description": description,
        **({} if message is None else {"messages": _messages(message)}),
        **({} if parameters is None else {"parameters": parameters}),
        "bindings": {"amqp": {**binding, "bindingVersion": _BINDING_VERSION}},
    }


def _messages(names: str) -> JsonObject:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names.split()}


def _operations() -> JsonObject:
    reply = {"address": {"location": "$message.header#/reply_to"}, "channel": {"$ref": "#/channels/replies"}}
    return {
        "acceptRun": {**_receive("submit", "Take a run, or refuse it at once."), "reply": reply},
        "acceptRunByQueue": {**_receive("runs", "The same, published to the queue by its name."), "reply": reply},
        "dispatchTask": _send("tasks", "Hand an attempt to the workers of an agent."),
        "takeReport": _receive("reports", "Apply what a worker reports; repeated and late reports have no effect."),
        "cancelRun": _receive("commands", "Cancel a run; without effect on one that has ended."),
        "retryRun": {
            **_receive("commands", "Retry a run that has ended as a new one, or refuse that."),
            "reply": reply,
        },
        "tellCancellation": _send(
            "cancellations", "Tell the workers that nobody waits for a run, or for branches, any more."
        ),
        "tellEvents": _send("events", "Tell what changed in a run."),
        "setAside": _send("deadLetters", "Set a message aside that could not be processed."),
    }


def _receive(channel: str, summary: str) -> JsonObject:
    binding = {"ack": True, "bindingVersion": _BINDING_VERSION}
    return _operation("receive", channel, summary, binding)


def _send(channel: str, summary: str) -> JsonObject:
    binding = {"deliveryMode": _PERSISTENT, "bindingVersion": _BINDING_VERSION}
    return _operation("send", channel, summary, binding)


def _operation(action: str, channel: str, summary: str, binding: JsonObject) -> JsonObject:
    target = {"$ref": f"#/channels/{channel}"}
    return {"action": action, "channel": target, "summary": summary, "bindings": {"amqp": binding}}


def _message(model: type[Message]) -> JsonObject:
    name = model.__name__
    extra = _REQUEST_PROPERTIES if name in {"RunRequest", "RetryRun"} else {}
    return {
        "name": name,
        "title": name,
        "summary": (model.__doc__ or "").partition("\n")[0],
        **({"headers": _TRACEPARENT} if name in _TRACED else {}),
        "payload": {"$ref": f"./{name}.schema.json"},
        "bindings": {"amqp": {"messageType": name, "bindingVersion": _BINDING_VERSION}},
        "x-amqp-properties": {**_PROPERTIES, "type": name, **extra},
    }


_DEAD_LETTER: Final = {
    "DeadLetter": {
        "name": "DeadLetter",
        "title": "DeadLetter",
        "summary": "A message as it was: its body, type, correlation_id, reply_to and headers, and these headers more.",
        "headers": {
            "type": "object",
            "properties": {
                name: {"type": "string", "description": text} for name, text in _DEAD_LETTER_HEADERS.items()
            },
        },
    }
}
