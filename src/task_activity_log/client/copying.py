"""Copies of errors: for `pickle` and `copy`, and to raise one again."""

from copy import copy
from typing import Any, TypeVar

Error = TypeVar("Error", bound=Exception)


def remade(kind: type[Error], args: tuple[Any, ...]) -> Error:
    """An error of this kind with these `args`, without its `__init__`, which may have other parameters."""
    return kind.__new__(kind, *args)


def again(error: Error) -> Error:
    """A copy to raise: an object that is raised again and again keeps all its tracebacks, with what was to be sent."""
    copied = copy(error)
    copied.__cause__ = error.__cause__
    return copied
