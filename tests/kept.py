"""What the fixtures of a module or of the session have started, and start again with the next test if that failed.

pytest keeps the failure of a fixture for as long as it would have kept its value: a service that is not available for a
moment would fail every later test of the process. So these fixtures only say how to get it, and each test asks for it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

_T = TypeVar("_T")


@contextmanager
def kept(make: Callable[[], AbstractContextManager[_T]]) -> Iterator[Callable[[], _T]]:
    """Gives a function that enters what `make` returns when it is first called, and returns the same value from then on.

    If that fails, so does the call, and the next one tries again. What was entered is left at the end of the block.
    """
    with ExitStack() as stack:
        found: list[_T] = []

        def get() -> _T:
            if not found:
                found.append(stack.enter_context(make()))
            return found[0]

        yield get
