"""The request bodies of the contract's vectors, decoded."""

import pytest

from task_activity_log.pipeline.request import Rules, decode
from task_activity_log.problem import Rejected
from tests.fakes import delivered
from tests.vectors import Vector, load

VECTORS = load()


def test_no_vector_is_missing() -> None:
    """Otherwise nobody would notice that one was lost."""
    assert len({vector.id for vector in VECTORS}) == 113


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.id)
def test_a_body_is_accepted_or_rejected_as_the_contract_says(vector: Vector) -> None:
    """An accepted body has the expected fields, a rejected one the expected code."""
    delivery = delivered(vector.body, content_type=vector.content_type)
    if vector.code is None:
        assert vector.holds(decode(delivery, Rules()).record)
    else:
        with pytest.raises(Rejected) as caught:
            decode(delivery, Rules())
        assert caught.value.problem.code == vector.code
