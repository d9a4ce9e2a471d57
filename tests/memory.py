"""A directory for the files of a test run that is in memory."""

import os

_ENOUGH_BYTES = 4 << 30
"""A whole run, with all its services, takes about 1 GiB."""


def in_memory(directory: str = "/dev/shm") -> str | None:  # noqa: S108  # it has the rights of /tmp
    """Return a directory in memory if this machine has one with enough space, in which programs may be executed.

    RabbitMQ and PostgreSQL sync their files several times for each message. That costs much time on a disk, and protects
    from a power cut only: a service that is killed finds everything that it has written.
    """
    try:
        about = os.statvfs(directory)
    except OSError:
        return None
    executable = not about.f_flag & os.ST_NOEXEC
    enough = about.f_bavail * about.f_frsize >= _ENOUGH_BYTES
    return directory if executable and enough and os.access(directory, os.W_OK) else None
