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

_TOLD = ("apt-get ", "Need to get", "Get:", "Setting up ")
"""How the lines of apt's output begin that tell people how far it is."""

_one_at_a_time = threading.Lock()


def cannot_install() -> str | None:
    """Return why packages cannot be installed here without asking anybody, or None."""
    if not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        return "this is neither Debian nor Ubuntu"
    if os.geteuid() == 0 or _sudo_asks_nothing():
        return None
    return "installing packages takes root or passwordless sudo"


def install(package: str, say: Callable[[str], None]) -> None:
    """Install a Debian package, telling the progress; SandboxError with the end of apt's output if it fails."""
    program = str(Path(__file__).with_name("install.sh"))
    argv = ["sh", program, package] if os.geteuid() == 0 else ["sudo", "-n", "sh", program, package]
    # to a file and not a pipe: should this process be killed, dpkg must not die of nobody reading
    with _one_at_a_time, tempfile.TemporaryFile("w+", errors="replace") as output:
        say(f"installing the package {package} (its service is not started)")
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        read = 0
        # should this process end meanwhile, the installation goes on to its own end and tidies up
        while process.poll() is None:
            time.sleep(0.5)
            read = _tell(output.fileno(), read, say)
        if process.returncode != 0:
            output.seek(0)
            raise SandboxError(f"installing {package} failed:\n" + "".join(output.readlines()[-10:]).rstrip())


def _tell(file: int, read: int, say: Callable[[str], None]) -> int:
    """Tell the complete lines after the first `read` bytes that are worth it; returns how much was read."""
    # pread leaves the position alone, which the writer shares
    text, end, _ = os.pread(file, 1 << 20, read).rpartition(b"\n")
    for line in text.decode(errors="replace").splitlines():
        if line.startswith(_TOLD):
            say(line)
    return read + len(text) + len(end)


def _sudo_asks_nothing() -> bool:
    if shutil.which("sudo") is None:
        return False
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
