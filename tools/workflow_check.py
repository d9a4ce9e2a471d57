"""Checks the GitHub workflows: with zizmor, and with actionlint if it is installed; one line for each says so.

zizmor finds insecure workflows, actionlint invalid ones. actionlint is not among the development dependencies: its
package on PyPI downloads the program from elsewhere while it is installed, which cannot be locked with a hash.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from tools.generated import ROOT

WORKFLOWS = ROOT / ".github" / "workflows"


def main() -> int:
    """Run both; returns the exit status."""
    zizmor = str(Path(sys.executable).with_name("zizmor"))
    failed = _run([zizmor, "--offline", "--no-progress", "--quiet", "--persona", "pedantic", str(WORKFLOWS)])
    print(f"workflows: zizmor finds {'something' if failed else 'nothing'}")
    if shutil.which("actionlint") is None:
        print("workflows: actionlint is not installed and did not check them")
    else:
        invalid = _run(["actionlint"])
        print(f"workflows: actionlint finds {'something' if invalid else 'nothing'}")
        failed = failed or invalid
    return int(failed)


def _run(command: list[str]) -> bool:
    return subprocess.run(command, cwd=ROOT, check=False).returncode != 0


if __name__ == "__main__":
    sys.exit(main())
