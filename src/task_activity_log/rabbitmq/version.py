"""The version of a broker, which decides what it counts, deletes and permits."""

import re

import aiormq


def version_of(connection: aiormq.abc.AbstractConnection) -> str:
    """The broker's version; empty if it does not say so."""
    version = connection.server_properties.get("version")
    return version.decode() if isinstance(version, bytes) else str(version or "")


def number(version: str) -> tuple[int, ...]:
    """Major and minor version, to compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
