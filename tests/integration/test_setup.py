"""`.ci/setup`, which every target of make runs first."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

SETUP = Path(__file__, "../../../.ci/setup").resolve()
PYTHON = f"""#!/bin/sh
# A Python whose environments have a pip that never ends.
case "$*" in
  *venv*.venv)
    mkdir -p .venv/bin
    printf '%s\\n' '#!/bin/sh' 'echo $$ > pip.pid' 'exec sleep 300' > .venv/bin/python
    chmod +x .venv/bin/python ;;
  *"print(sys.executable)"*) echo "$0" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


def test_ctrl_c_ends_pip_too(tmp_path: Path) -> None:
    """A shell lets what it starts in the background ignore Ctrl-C. There is no traceback, and the text says how to go on."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(SETUP, tmp_path / ".ci/setup")
    for name in ("requirements-dev.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    os.mkfifo(tmp_path / "pip.pid")
    with subprocess.Popen(  # noqa: S603 - a copy of ours
        [tmp_path / ".ci/setup"],
        env={**os.environ, "PYTHON": str(python)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - the tests may run in the background
    ) as setup:
        pip = int((tmp_path / "pip.pid").read_text())  # waits until pip runs
        os.killpg(setup.pid, signal.SIGINT)
        said = setup.communicate()[1]
    assert setup.returncode == 130
    assert said.splitlines()[-1] == "setup: interrupted; the same command starts again from the beginning"
    assert "Traceback" not in said
    assert not Path(f"/proc/{pip}").exists()
