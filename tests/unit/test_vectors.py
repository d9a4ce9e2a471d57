import pytest

from task_activity_log.pipeline.request import Rules, decode
from task_activity_log.problem import Rejected
from tests.fakes import delivered
from tests.vectors import Vector, load

VECTORS = load()


def test_all_are_there() -> None:
    """A vector that is lost would not be missed otherwise."""
    assert len({vector.id for vector in VECTORS}) == 113


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.id)
def test_a_body_is_taken_or_rejected_as_the_contract_says(vector: Vector) -> None:
    """The fields of what is accepted, the code of what is not."""
    delivery = delivered(vector.body, content_type=vector.content_type)
    if vector.code is None:
        assert vector.holds(decode(delivery, Rules()).record)
    else:
        with pytest.raises(Rejected) as caught:
            decode(delivery, Rules())
        assert caught.value.problem.code == vector.code
