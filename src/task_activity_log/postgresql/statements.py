"""Reads the statements in `sql/`."""

import re
from importlib import resources

_FOLDER = resources.files("task_activity_log.postgresql").joinpath("sql")
GRANTS = _FOLDER.joinpath("grants.sql")
"""The privileges that the role of the workers needs, for psql."""


def elsewhere(name: str) -> str:
    """A part of a statement: the schemas that have a table with this name, an expression that is null if none is looked for."""
    return sql("elsewhere").strip().replace("{name}", name)


def sql(name: str) -> str:
    """A statement from `sql/`, without its comments, which would fill the query text in pg_stat_activity."""
    text = _FOLDER.joinpath(f"{name}.sql").read_text(encoding="utf-8")
    return re.sub(r"(?m)^\s*--.*\n", "", text)
