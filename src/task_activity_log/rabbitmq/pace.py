"""The pace of the intake: how many messages the broker may send, decided without input, output or a clock.

A quorum queue appends what is returned to those that were returned before, and delivers these first. So the order is kept
only if whoever has a part of what was returned has all of it when the next return happens. What a consumer returns is
never more than its prefetch: a consumer that always has the same, full prefetch keeps the order through any interruption.
That is the pace of a single active consumer, except after the broker has failed to deliver a message (`Pace.isolate`).

Without a single active consumer order is promised for one consumer and one interruption at a time. There, a message that
crashes the process must not take others with it again and again, whose attempts would grow with its own: it may come to any
worker, among any others. So each new consumer starts with one message, and gets the full prefetch once it has processed a
harmless one; and suspects (`pipeline.suspects`) that come with others in hand are returned, together with the others, to
come one by one. Most are found by their marks (`pipeline.trials`), after they were taken; others were delivered too often.

    state      broker may send      ends when
    CLOSED     nothing              a prefetch is wanted, and a channel consumes
    UNPROVED   one at a time        a harmless message is processed, and none is to come one by one
                                    (if it is isolated: one that was not returned)
    PROVED     the full prefetch    the channel is closed: a pause, the stop, suspects, a lost connection
    CLOSING    what the prefetch    the channel is closed, or everybody who paused has resumed
               leaves room for

                opened                 harmless message
    CLOSED ---------------> UNPROVED -------------------> PROVED
      ^ |                      |                           |  ^
      | |   opened, if a single active consumer            |  |
      | +-----------------------------------------------------+
      |                        |                           |
      |                        | pause, stop, suspects     |
      | closed or lost,        v                           |
      | in any state        CLOSING <----------------------+
      +------------------------+

In CLOSING acknowledgements are kept back, so that nothing new comes in place of what is finished. Then the channel is
closed in one write with them: `Consumer.close`. No consumer is ever cancelled with messages in hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from task_activity_log.message import Delivery
from task_activity_log.pipeline.suspects import RETURNED_BELOW, batch_length, by_arrival, is_suspect


class State(Enum):
    """What the broker may send, and why; see the drawing above."""

    CLOSED = auto()
    UNPROVED = auto()
    PROVED = auto()
    CLOSING = auto()


class Pace:
    """Decides when to consume, with which prefetch, and how many messages make up a batch."""

    def __init__(self, prefetch: int, batch_max: int, *, single_active: bool) -> None:
        """Start without a channel.

        Args:
            prefetch: how many messages a proved consumer may have in hand; at least 1.
            batch_max: how many messages may be processed together; at least 1.
            single_active: whether only one consumer of the queue gets messages.
        """
        self._full = prefetch
        self._batch_max = batch_max
        self.single_active = single_active
        """Whether only one consumer of the queue gets messages."""
        self._proved = single_active
        self._one_by_one = 0  # how many of the returned messages are still to come one by one
        self._apart = 0  # how many of those that are to be returned are to come one by one
        self._isolated = False  # whether what was in hand when the broker failed may still be coming
        self._open = False
        self.returning = False
        """Whether the channel must be closed because a suspect has come with others in hand."""
        self.stopping = False
        """Whether nothing is ever to come again. Set by `stop` alone."""
        self.paused_by: set[str] = set()
        """Who has paused and not resumed. Changed by `pause` and `resume` alone."""

    @property
    def state(self) -> State:
        """The present state."""
        if not self._open:
            return State.CLOSED
        if self.returning or not self.wanted:
            return State.CLOSING
        return State.PROVED if self.wanted == self._full else State.UNPROVED

    @property
    def wanted(self) -> int:
        """The prefetch to consume with; 0 if nothing is to be consumed."""
        if self.stopping or self.paused_by:
            return 0
        return self._full if self._proved and not self._one_by_one and not self._isolated else 1

    @property
    def isolated(self) -> bool:
        """Whether what was in hand when the broker failed to deliver may still be coming, one by one."""
        return self._isolated

    @property
    def holds_up(self) -> bool:
        """Whether a message that cannot be acknowledged holds up all others; see `proved`."""
        return self._isolated and self.single_active

    def opened(self) -> None:
        """A new channel consumes."""
        self._open = True

    def closed(self, returned: int = 0, *, still_proved: bool = False) -> None:
        """The channel is closed or lost; `returned` messages went back to the queue in good order.

        `still_proved`: it was replaced while nothing was in hand, which says nothing about any message.
        """
        self._open = False
        self._proved = self.single_active or (still_proved and self._proved)
        if self.returning:
            # In bulk, the suspects among them would return the others again, each time with one more attempt.
            self._one_by_one = min(returned, self._apart)
            self.returning = False

    def isolate(self) -> None:
        """The broker has ended the connection because it cannot deliver a message of this queue.

        That message comes again until its delivery limit, and with the full prefetch all others in hand would reach
        theirs with it. So what was returned comes one by one, until something comes that was not.
        """
        self._isolated = True

    def leave_isolation(self) -> None:
        """Nothing of this queue is in hand, and the broker has not failed for a while."""
        self._isolated = False

    def settled(self, handled: Sequence[Delivery]) -> None:
        """`handled` were processed, and are about to be acknowledged."""
        self._one_by_one = max(0, self._one_by_one - len(handled))
        isolated = self._isolated and all(each.attempts for each in handled)
        self.proved(handled)
        self._isolated = isolated

    def proved(self, handled: Sequence[Delivery]) -> None:
        """`handled` were processed safely, whether they can be acknowledged already or not."""
        if self.state is State.UNPROVED and not all(map(is_suspect, handled)):
            self._proved = True
            # What cannot be acknowledged yet must not hold up the others, unless these could go to the next consumer before it.
            self._isolated = self._isolated and self.single_active

    def batch(self, waiting: Sequence[Delivery], in_hand: int) -> int:
        """How many of the messages that wait, from the first one on, make up the next batch.

        Returns 0 if the first one is a suspect and must be returned with the others in hand; see `returning`.
        """
        if self.single_active:
            return min(len(waiting), self._batch_max)  # the marks of its messages divide it: see `pipeline.suspects`
        if by_arrival(waiting[0]) and self.set_apart(waiting[0], in_hand, in_hand):
            return 0
        return batch_length(waiting, self._batch_max, by_arrival)

    def set_apart(self, suspect: Delivery, in_hand: int, count: int) -> bool:
        """Whether a suspect must be returned with the others in hand before it is tried; see `returning`.

        Args:
            suspect: what is to be tried alone.
            in_hand: how many messages are in hand with it.
            count: how many of those that are returned, from the first one on, are to come one by one.
        """
        if self.single_active or in_hand <= 1 or suspect.attempts >= RETURNED_BELOW:
            return False
        self.returning, self._apart = True, count
        return True

    def pause(self, by: str) -> None:
        """Nothing more is to come until `by` resumes."""
        self.paused_by.add(by)

    def resume(self, by: str) -> None:
        """`by` no longer pauses; it may be that others do, or that nobody did."""
        self.paused_by.discard(by)

    def stop(self) -> None:
        """Nothing is ever to come again."""
        self.stopping = True
