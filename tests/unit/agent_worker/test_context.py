import asyncio
import uuid

from agent_worker import AgentContext


async def test_a_context_made_by_hand_lets_an_agent_be_called_in_its_own_test() -> None:
    context = AgentContext(agent_name="research", run_id=uuid.UUID(int=1), step_id="step-a")
    await context.heartbeat()
    context.heartbeat()
    assert (context.attempt, context.over) == (1, False)
    assert context.logger is context.logger


async def test_awaiting_a_heartbeat_gives_other_tasks_a_turn() -> None:
    context = AgentContext(agent_name="research", run_id=uuid.UUID(int=1), step_id="step-a")
    turns: list[str] = []
    asyncio.get_running_loop().call_soon(turns.append, "other")
    await context.heartbeat()
    assert turns == ["other"]
