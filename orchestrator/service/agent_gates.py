"""The gates of limited agents: held tasks go out as soon as the limit of their agent has room.

A task that a limit holds back lies in the outbox. This process looks after an agent whenever one of its commits left
such a task or ended an attempt of the agent, when the next token of a rate is due, and when the lookout finds that an
agent has room which nobody has filled: another replica ended the attempt, or died before it came to this.

How many may go is decided in one transaction that takes turns with those of other replicas (`let_tasks_through`).
What was let through is sent by the relay like any message that a commit hands over.
"""

import asyncio
from datetime import timedelta
from typing import Final

from messaging.crash_points import reach
from orchestrator.service.batch import Committed
from orchestrator.service.health import DatabaseWatch
from orchestrator.service.relay import Relay
from orchestrator.storage.port import Storage

PAGE: Final = 200  # let through in one transaction, which reads their messages
PAUSE_SECONDS: Final = 0.05  # tokens of a fast rate are taken together
LATE_SECONDS: Final = 0.001  # a token that is looked for too early is nobody's until the next look


class AgentGates:
    """Lets held tasks through, for all limited agents."""

    def __init__(self, storage: Storage, relay: Relay, database: DatabaseWatch) -> None:
        self._storage = storage
        self._relay = relay
        self._database = database
        self._agents: set[str] = set()  # to look after
        self._waiting: dict[str, asyncio.TimerHandle] = {}  # for the next token
        self._waited: set[str] = set()  # for a token that is there now, unless another replica was faster
        self._looks = False  # for agents that others have left with room
        self._woken = asyncio.Event()
        self._passing = asyncio.Lock()

    async def committed(self, batch: Committed) -> None:
        """Look after the agents that a commit concerns; called after it."""
        if batch.limited_agents:
            self._agents |= batch.limited_agents
            self._woken.set()

    def wake(self) -> None:
        """Look for agents that have room: there are some."""
        self._looks = True
        self._woken.set()

    async def run(self) -> None:
        """Let tasks through whenever woken."""
        while True:
            await self._woken.wait()
            await self.run_once()

    async def run_once(self) -> None:
        """Let through what may go, of all agents that somebody should look after."""
        async with self._passing:
            self._woken.clear()
            if self._looks:
                self._looks = False
                self._agents.update(await self._storage.agents_with_room())
            while self._agents:
                agent_name = self._agents.pop()
                while await self._let_through(agent_name):
                    pass

    async def close(self) -> None:
        """Let nothing more through; what is let through just now is handed to the relay first."""
        await self._passing.acquire()
        for timer in self._waiting.values():
            timer.cancel()

    async def _let_through(self, agent_name: str) -> bool:
        """Let a page of an agent's tasks through; return whether more may go at once."""
        has_waited = agent_name in self._waited
        self._waited.discard(agent_name)
        begun = asyncio.get_running_loop().time()
        with self._database.using():
            done = await self._storage.let_tasks_through(agent_name, PAGE)
        if done.messages:
            reach("agent_gate.let_through", done.messages)
            await self._relay.committed(Committed(answers=[], begun=begun, messages=done.messages))
        # Of replicas that wait for the same token one gets it, and that one waits for the next.
        if done.next_token is not None and (done.messages or not has_waited):
            self._wait(agent_name, done.next_token)
        return done.more

    def _wait(self, agent_name: str, until_token: timedelta) -> None:
        if agent_name not in self._waiting:
            seconds = max(until_token.total_seconds() + LATE_SECONDS, PAUSE_SECONDS)
            timer = asyncio.get_running_loop().call_later(seconds, self._has_waited, agent_name)
            self._waiting[agent_name] = timer

    def _has_waited(self, agent_name: str) -> None:
        del self._waiting[agent_name]
        self._waited.add(agent_name)
        self._agents.add(agent_name)
        self._woken.set()
