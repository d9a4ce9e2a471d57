"""Reads the statements in `sql/`."""

import re
from importlib import resources


def sql(name: str) -> str:
    """A statement from `sql/`, without its comments, which would fill the query text in pg_stat_activity."""
    text = resources.files("task_activity_log.postgresql").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
    return re.sub(r"(?m)^\s*--.*\n", "", text)
