"""How many examples hypothesis tries: a few hundred in `make test`, and many times as many in `make fuzz`."""

import os

_TIMES = int(os.environ.get("EXAMPLES_TIMES", "1"))


def examples(usual: int) -> int:
    """How many to try if `make test` tries this many."""
    return usual * _TIMES
