"""What the sandbox does when the Docker engine fails."""

import docker  # type: ignore[import-untyped]  # it has no types
import pytest

from sandbox import containers

BUSY = 'Internal Server Error ("Cannot pause container c0ffee: OCI runtime pause failed: unable to freeze: unknown")'
GONE = 'Conflict ("Container c0ffee is not running")'


class Container:
    """A container whose engine answers these errors before it pauses."""

    def __init__(self, *errors: str) -> None:
        """Take the errors, in their order."""
        self.errors = list(errors)

    def pause(self) -> None:
        """Fail with the next error, if there is one."""
        if self.errors:
            raise docker.errors.APIError(self.errors.pop(0))


def test_a_container_that_cannot_be_frozen_on_a_busy_machine_is_frozen_later() -> None:
    """Otherwise a run of `make chaos` ends with an error of its own on such a machine."""
    container = Container(BUSY, BUSY)
    containers.freeze(container)
    assert not container.errors


def test_other_errors_are_raised_at_once() -> None:
    """A container that has ended can never be frozen."""
    container = Container(GONE, GONE)
    with pytest.raises(docker.errors.APIError, match="not running"):
        containers.freeze(container)
    assert container.errors == [GONE]


def test_it_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised when the limit is over."""
    monkeypatch.setattr(containers, "_FREEZE_LIMIT_SECONDS", -1)
    container = Container(BUSY, BUSY)
    with pytest.raises(docker.errors.APIError, match="unable to freeze"):
        containers.freeze(container)
    assert container.errors == [BUSY]
