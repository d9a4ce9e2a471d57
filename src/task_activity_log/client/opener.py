"""Who has opened a client or a subscription: its connections belong to that process and to that event loop alone."""

import asyncio
import os

from task_activity_log.client.errors import ClientError


class Opener:
    """The process and the event loop that have opened something."""

    def __init__(self, what: str) -> None:
        """`what` is opened, as it is called in errors. Nobody has opened it yet."""
        self._what = what
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None

    def note(self) -> None:
        """It is opened here and now."""
        self._process, self._loop = os.getpid(), asyncio.get_running_loop()

    @property
    def is_here(self) -> bool:
        """Whether this is the process, and the event loop, in which it was opened."""
        return self._process == os.getpid() and self._loop in (None, asyncio.get_running_loop())

    @property
    def ended(self) -> bool:
        """Whether the event loop is closed, and with it what was opened. `asyncio.run` closes its loop."""
        return self._loop is not None and self._loop.is_closed()

    def check(self) -> None:
        """Raise `ClientError` in another process or event loop: what waits in asyncio cannot be waited for elsewhere.

        Two processes, one of which was forked, would write to one connection.
        """
        if self._process != os.getpid():
            raise ClientError(
                f"the {self._what} was opened before os.fork, by another process: open one in this process"
            )
        if not self.is_here:
            raise ClientError(
                f"the {self._what} was opened in another event loop: each asyncio.run has its own, and opens its own"
            )
