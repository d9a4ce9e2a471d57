"""The clock of the replies that wait at their addresses. No input or output."""

ASK_SECONDS = 0.5
"""After this long without any answer the broker is asked something. Otherwise an address that is silent could not be told
from a broker that is, while nothing is published to others."""
SILENT_SECONDS = 1.0
"""How long the clock goes on after an answer."""


class AnsweredTime:
    """Counts the seconds in which the broker answers: those of the second after each answer.

    A broker that answers nobody is frozen or overloaded, and no address is at fault for that. The same rule leaves out the
    time in which this process did not run: the answers that came meanwhile are not read yet.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._seconds = 0.0
        self._read_at, self._answered_at = 0.0, 0.0

    def read(self, now: float, *, reachable: bool, answered_at: float) -> float:
        """The seconds counted so far. Call it several times a second while they matter.

        Args:
            now: the time.
            reachable: whether the broker takes messages. If not, the time since the last call does not count.
            answered_at: when it last answered.
        """
        if reachable:
            before_ends = self._answered_at + SILENT_SECONDS
            self._seconds += max(0.0, min(now, before_ends) - self._read_at)
            if answered_at > self._answered_at:
                begins = max(self._read_at, answered_at, before_ends)
                self._seconds += max(0.0, min(now, answered_at + SILENT_SECONDS) - begins)
        self._read_at, self._answered_at = now, max(answered_at, self._answered_at)
        return self._seconds
