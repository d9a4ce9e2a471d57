"""The pace of the intake: how many messages the broker may send, decided without input, output or a clock.

A lost connection counts as a failed delivery for every message in hand. So each new consumer starts with one message at
a time, and gets the full prefetch once a harmless message was processed: a message that crashes the process takes no
others with it. Harmless is every message that is not a suspect (`pipeline.suspects`).

    state           broker may send      ends when
    NOT_CONNECTED   nothing              there is a connection
    UNPROVED        one at a time        a harmless message is settled or proved
    PROVED          the full prefetch
    PAUSED          nothing              everybody who paused has resumed
    ONE_BY_ONE      one at a time        as many messages are settled as were requeued one by one
    STOPPING        nothing              never

                   connected              harmless message
    NOT_CONNECTED ------------> UNPROVED ------------------> PROVED
          ^                      |    ^                      |   ^
          |                pause |    | resume         pause |   |
          | lost,                v    |                      |   |
          | in any state         PAUSED <--------------------+   |
          |                      ^    |                          |
          |                pause |    | resume, after            | all of them settled,
          |                      |    v requeue one by one       | the last one harmless
          |                    ONE_BY_ONE -----------------------+

From ONE_BY_ONE it goes to UNPROVED if the last message was a suspect.
STOPPING follows any state and is final. Who has paused, and how many messages are still to come one by one, is kept when
the connection is lost: then `connected` leads to PAUSED or ONE_BY_ONE.

Every method that can change what the broker may send returns the step to take: `Register`, `Cancel`, or None for no
change. The steps must be taken in the order in which they are returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from task_activity_log.message import Delivery
from task_activity_log.pipeline.suspects import is_suspect


@dataclass(frozen=True, slots=True)
class Register:
    """Consume with this prefetch. A consumer that is registered is cancelled first."""

    prefetch: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel the consumer. What it has delivered stays in hand."""


Step = Register | Cancel


class State(Enum):
    """What the broker may send, and why; see the drawing above."""

    NOT_CONNECTED = auto()
    UNPROVED = auto()
    PROVED = auto()
    PAUSED = auto()
    ONE_BY_ONE = auto()
    STOPPING = auto()


class Pace:
    """Decides when to consume, and with which prefetch."""

    def __init__(self, prefetch: int) -> None:
        """Start without a connection.

        Args:
            prefetch: how many messages a proved consumer may have in hand; at least 1.
        """
        self._full = prefetch
        self._connected = False
        self._proved = False
        self._one_by_one = 0
        self._stopping = False
        self._registered = 0
        """The prefetch of the last step; 0 while there is no consumer."""
        self.paused_by: set[str] = set()
        """Who has paused and not resumed. Changed by `pause` and `resume` alone."""

    @property
    def state(self) -> State:
        """The present state."""
        if self._stopping:
            return State.STOPPING
        if not self._connected:
            return State.NOT_CONNECTED
        if self.paused_by:
            return State.PAUSED
        if self._one_by_one:
            return State.ONE_BY_ONE
        return State.PROVED if self._proved else State.UNPROVED

    def connected(self) -> Step | None:
        """There is a new channel, and nothing is consumed on it yet."""
        self._connected = True
        return self._step()

    def lost(self) -> None:
        """The channel is gone, and its consumer with it."""
        self._connected = self._proved = False
        self._registered = 0

    def settled(self, handled: Sequence[Delivery], count: int) -> Step | None:
        """`handled` were processed, and `count` of them are about to be acknowledged.

        The step comes before the acknowledgement if it cancels: the acknowledgement lets the broker send more.
        """
        if self.state is State.ONE_BY_ONE:
            self._one_by_one = max(0, self._one_by_one - count)
        if self.state is State.UNPROVED and not all(map(is_suspect, handled)):
            self._proved = True
        return self._step()

    def proved(self) -> Step | None:
        """Messages were processed safely, suspects or not, and stay in hand.

        They take up the prefetch. With a prefetch of one, nothing else would come while they stay.
        """
        if self.state is State.UNPROVED:
            self._proved = True
        return self._step()

    def pause(self, by: str) -> Step | None:
        """Nothing more is to come until `by` resumes."""
        self.paused_by.add(by)
        self._proved = False
        return self._step()

    def resume(self, by: str) -> Step | None:
        """`by` no longer pauses; it may be that others do, or that nobody did."""
        self.paused_by.discard(by)
        return self._step()

    def requeued(self, count: int, *, one_by_one: bool) -> Step | None:
        """Everything in hand, `count` messages, went back to the queue.

        With `one_by_one` that many come again one at a time. In bulk, suspects among them would have to be requeued once
        more, and each time counts as a failed delivery.
        """
        self._one_by_one = count if one_by_one else 0
        self._proved = False
        return self._step()

    def stop(self) -> Step | None:
        """Nothing is ever to come again."""
        self._stopping = True
        return self._step()

    def _step(self) -> Step | None:
        prefetch = self._prefetch()
        if prefetch == self._registered:
            return None
        self._registered = prefetch
        return Register(prefetch) if prefetch else Cancel()

    def _prefetch(self) -> int:
        match self.state:
            case State.PROVED:
                return self._full
            case State.UNPROVED | State.ONE_BY_ONE:
                return 1
            case State.NOT_CONNECTED | State.PAUSED | State.STOPPING:
                return 0
