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
    passed = [_passes("zizmor", [zizmor, "--offline", "--no-progress", "--persona", "pedantic", str(WORKFLOWS)])]
    if shutil.which("actionlint"):
        passed.append(_passes("actionlint", ["actionlint"]))
    else:
        print("workflows: actionlint is not installed and did not check them")
    return int(not all(passed))


def _passes(name: str, command: list[str]) -> bool:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"workflows: {name} found this:\n{done.stdout}{done.stderr}", file=sys.stderr)
        return False
    print(f"workflows: {name} finds nothing")
    return True


if __name__ == "__main__":
    sys.exit(main())
