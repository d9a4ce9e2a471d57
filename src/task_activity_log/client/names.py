"""Names of queues and exchanges that a program gives: one that the driver cannot send is refused at once, by its argument."""

from task_activity_log.partitions import valid_name

_QUEUE_MAX, _EXCHANGE_MAX = 255, 127


def queue_name(argument: str, name: str) -> str:
    """The name of a queue. Raises `ValueError`, with the name of the argument, if the driver cannot send it."""
    return _named(argument, _QUEUE_MAX, name)


def exchange_name(argument: str, name: str, ending: str = "") -> str:
    """The name of an exchange that leaves room for an ending. Raises `ValueError` like `queue_name`."""
    return _named(argument, _EXCHANGE_MAX - len(ending), name)


def _named(argument: str, longest: int, name: str) -> str:
    try:
        return valid_name(longest, name)
    except ValueError as error:
        raise ValueError(f"{argument} {error}") from None
