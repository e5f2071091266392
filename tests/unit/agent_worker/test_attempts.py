import uuid

from agent_worker.attempts import AnswerMemory

A, B, C = (uuid.UUID(int=number) for number in range(3))


def test_an_answer_is_remembered_until_there_are_too_many() -> None:
    memory = AnswerMemory(max_answers=2)
    memory.remember(A, b"a")
    memory.remember(B, b"b")
    assert memory.recall(A) == b"a"  # and so used last
    memory.remember(C, b"c")
    assert (memory.recall(A), memory.recall(B), memory.recall(C)) == (b"a", None, b"c")


def test_the_bytes_of_all_answers_are_bounded() -> None:
    memory = AnswerMemory(max_bytes=10)
    memory.remember(A, b"x" * 6)
    memory.remember(B, b"x" * 4)
    assert memory.recall(A) is not None
    memory.remember(C, b"x")
    assert memory.recall(B) is None
    memory.remember(C, b"x" * 11)
    assert (memory.recall(A), memory.recall(C)) == (None, None)
    memory.remember(B, b"x" * 10)  # what was forgotten does not count any more
    assert memory.recall(B) is not None


def test_an_answer_that_replaces_another_counts_once() -> None:
    memory = AnswerMemory(max_bytes=10)
    for _ in range(5):
        memory.remember(A, b"x" * 9)
    assert memory.recall(A) is not None
