"""Where a test run keeps its files."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.memory import in_memory


def has(monkeypatch: pytest.MonkeyPatch, *, mebibytes: int, flags: int = 0) -> None:
    about = SimpleNamespace(f_bavail=mebibytes, f_frsize=1 << 20, f_flag=flags)
    monkeypatch.setattr(os, "statvfs", lambda _: about)


def test_a_large_directory_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, mebibytes=4096)
    assert in_memory(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize(("mebibytes", "flags"), [(64, 0), (4096, os.ST_NOEXEC)], ids=["small", "noexec"])
def test_one_that_is_small_or_executes_nothing_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int, flags: int
) -> None:
    """64 MiB is what a container has."""
    has(monkeypatch, mebibytes=mebibytes, flags=flags)
    assert in_memory(str(tmp_path)) is None


def test_one_that_does_not_exist_is_not_used(tmp_path: Path) -> None:
    assert in_memory(str(tmp_path / "none")) is None
