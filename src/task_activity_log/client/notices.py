"""What the caller of a client is told of its connections."""

from collections.abc import Callable

from task_activity_log.client.errors import ClientError


class Notices:
    """Calls the caller's functions: once for each reason of an outage, and when the client is connected again.

    A client has two connections. When the broker is away, both are lost, and are tried again and again.
    """

    def __init__(
        self,
        *,
        on_outage: Callable[[str], None],
        on_connected: Callable[[], None],
        on_failure: Callable[[ClientError], None],
    ) -> None:
        """`on_failure` is told if one of the two functions raises an exception."""
        self._on_outage, self._on_connected, self._on_failure = on_outage, on_connected, on_failure
        self._told: str | None = None  # the reason of the outage that the caller knows of

    def away(self, reason: str) -> None:
        """A connection is lost or cannot be opened, or the broker blocks publishers."""
        if reason != self._told:
            self._told = reason
            self._call("on_outage", lambda: self._on_outage(reason))

    def connected(self) -> None:
        """There is a connection, or the broker does not block publishers any more."""
        self._told = None
        self._call("on_connected", self._on_connected)

    def back(self) -> None:
        """The other connection is there again: the caller is told if it was told of an outage."""
        if self._told is not None:
            self.connected()

    def _call(self, name: str, function: Callable[[], None]) -> None:
        """Call it. Its exception ends the client: taken for a lost connection, it would be repeated without end.

        Raises:
            ClientError: it has raised one, which is the cause.
        """
        try:
            function()
        except Exception as error:
            failure = raised(name, error)
            self._on_failure(failure)
            raise failure from error


def raised(name: str, error: Exception) -> ClientError:
    """What to raise when a function of the caller has raised an exception."""
    failure = ClientError(f"{name} has raised {type(error).__name__}")
    failure.__cause__ = error
    return failure
