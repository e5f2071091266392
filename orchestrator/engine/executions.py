"""The ids of step executions.

A step that runs once in a run lends its execution its own id. In the body of a loop a step runs once in each iteration,
and the numbers of the iterations stand behind its id, those of outer loops first: `x[3]`, `y[3][0]`. No step's id holds
a bracket, so both can be read off.
"""

from collections.abc import Sequence

Iterations = Sequence[int]  # their numbers, from 0, of outer loops first


def execution_id(step_id: str, iterations: Iterations) -> str:
    """Return the id of a step's execution in these iterations of the loops around it."""
    return step_id + "".join(f"[{number}]" for number in iterations)


def step_of(execution: str) -> str:
    """Return the id of the step that the execution is of."""
    return execution.partition("[")[0]


def iterations_of(execution: str) -> tuple[int, ...]:
    """Return the numbers of the iterations that the execution lies in."""
    numbers = execution.partition("[")[2]
    return tuple(int(number) for number in numbers[:-1].split("][")) if numbers else ()
