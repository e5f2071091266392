"""The names of queues: brokers and their clients take them, and no two are the same."""

from uuid import UUID

import pytest
from pamqp.constants import DOMAIN_REGEX

from messaging import topology

RUN = UUID(int=1)


@pytest.mark.parametrize("block_id", ["block", "block[3]", "block[12][0]", "x" * 100 + "[999999]" * 7])
def test_clients_take_the_name_of_every_gate_queue(block_id: str) -> None:
    queue = topology.gate_queue(RUN, block_id)
    assert DOMAIN_REGEX["queue-name"].fullmatch(queue.name)
    assert len(queue.name) <= 255, "a short string of AMQP"
    (binding,) = queue.bindings
    assert binding.routing_key == topology.gate_key(RUN, block_id)


def test_each_execution_of_a_block_has_a_gate_queue_of_its_own() -> None:
    blocks = ["b", "b[1]", "b[11]", "b[1][1]", "b[1][0]", "b1", "b-1", "b_1"]
    assert len({topology.gate_queue(RUN, block_id).name for block_id in blocks}) == len(blocks)
