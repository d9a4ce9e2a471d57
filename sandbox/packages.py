"""Installs RabbitMQ and PostgreSQL with apt, on Debian and Ubuntu, without starting the system's own instances."""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sandbox.service import SandboxError

_PROGRESS = ("apt-get ", "Need to get", "Get:", "Setting up ")
"""The beginnings of those lines of apt's output that report progress."""

_one_at_a_time = threading.Lock()


def cannot_install() -> str | None:
    """Return why packages cannot be installed here without a password, or None if they can."""
    if not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        return "this is neither Debian nor Ubuntu"
    if os.geteuid() == 0 or _sudo_asks_nothing():
        return None
    return "installing packages takes root or passwordless sudo"


def install(package: str, say: Callable[[str], None]) -> None:
    """Install a Debian package and report progress to `say`; SandboxError with the end of apt's output if it fails."""
    program = str(Path(__file__).with_name("install.sh"))
    argv = ["sh", program, package] if os.geteuid() == 0 else ["sudo", "-n", "sh", program, package]
    # A file and not a pipe: if this process is killed, a closed pipe would kill dpkg in the middle of its work.
    with _one_at_a_time, tempfile.TemporaryFile("w+", errors="replace") as output:
        say(f"installing the package {package} (without starting its service)")
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        read = 0
        # If this process ends meanwhile, the installation still runs to its end and cleans up after itself.
        while process.poll() is None:
            time.sleep(0.5)
            read = _report(output.fileno(), read, say)
        if process.returncode != 0:
            output.seek(0)
            raise SandboxError(f"installing {package} failed:\n" + "".join(output.readlines()[-10:]).rstrip())


def _report(file: int, read: int, say: Callable[[str], None]) -> int:
    """Report the progress lines after the first `read` bytes; return the number of bytes read so far."""
    # pread does not move the file position, which the writer shares
    text, end, _ = os.pread(file, 1 << 20, read).rpartition(b"\n")
    for line in text.decode(errors="replace").splitlines():
        if line.startswith(_PROGRESS):
            say(line)
    return read + len(text) + len(end)


def _sudo_asks_nothing() -> bool:
    if shutil.which("sudo") is None:
        return False
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
