"""A PostgreSQL connection that knows its server."""

import secrets
from typing import TYPE_CHECKING, Any

import asyncpg

from task_activity_log.postgresql.statements import sql

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection  # not generic at run time

_ARRAYS = [
    {
        "oid": oid, "ns": "pg_catalog", "name": f"_{element}", "kind": b"b", "basetype": None, "elemtype": element_oid,
        "elemdelim": ",", "range_subtype": None, "attrtypoids": None, "attrnames": None, "depth": 0,
        "basetype_name": None, "elemtype_name": element, "range_subtype_name": None,
    }
    for oid, element_oid, element in ((1000, 16, "bool"), (1016, 20, "int8"), (2951, 2950, "uuid"))
]  # fmt: skip
"""The types of our arrays that the driver does not know by itself, as its lookup in the catalog would return them."""
_RESET = f"RESET ROLE; {sql('reset')}"
_SETTINGS = sql("settings")
_PROCESS = secrets.token_hex(8)
"""In the names of this process's prepared statements."""


class ServerConnection(_Connection):
    """A connection that knows its server. `connecting` fills in what it knows."""

    __slots__ = ("as_connected", "cluster", "place", "timeline", "unreplicated", "where", "writable")

    place: str
    """The server, for people: `db1:5432`."""
    where: str
    """The database and the server, for people: `database app at db1:5432`."""
    writable: bool
    cluster: int | None
    """The system identifier: it is the same for a primary and its standbys. None: not known."""
    timeline: int
    """It grows with each promotion of a standby. 0: not known."""
    as_connected: str
    """The statements that take back what a trigger has set for longer than its statement."""
    unreplicated: bool
    """Whether somebody cancelled a commit while it waited for a standby (see `notice`)."""

    def notice(self, _: object, message: Any) -> None:
        """A warning of the server. This one comes with a statement that succeeds although its commit is not replicated."""
        if message.server_source_function == "SyncRepWaitForLSN":
            self.unreplicated = True

    @property
    def is_utf8(self) -> bool:
        """Whether texts are sent in UTF-8, which has every character. A trigger can choose another encoding for the session."""
        return bool(self.get_settings().get_text_codec().name == "utf-8")

    @property
    def socket(self) -> Any:
        """The socket, to set its options."""
        transport: Any = self._transport  # type: ignore[attr-defined]  # the driver has no public name for it
        return transport.get_extra_info("socket")

    def end_statement(self) -> None:
        """Ask the server to cancel the statement under way. The statement then fails (57014), or has been faster."""
        self._cancel_current_command(self._loop.create_future())  # type: ignore[attr-defined]  # no public name for it

    def _get_unique_id(self, prefix: str) -> str:
        """A name for a prepared statement that no other process uses.

        The driver counts, in each process from 1. Behind a pooler that assigns connections per transaction two workers then have
        the same name for different statements, and one would execute that of the other.
        """
        return f"{super()._get_unique_id(prefix)}{_PROCESS}"  # type: ignore[misc]  # the driver has no public name for it

    async def remember_settings(self) -> None:
        """Remember what is set now, so that it can be restored. To be called before anything else is executed."""
        self.as_connected = _RESET
        try:
            again = await self.fetchval(_SETTINGS)
        except asyncpg.PostgresConnectionError:  # a pooler that has no server for it
            raise
        except asyncpg.PostgresError:  # somebody has revoked the functions, or it only resembles PostgreSQL
            return
        if again:
            self.as_connected += f"; {again}"

    def know_arrays(self) -> None:
        """Tell the driver the array types of our statements.

        Otherwise it looks them up in the catalog of each connection, with a statement whose operators have no schema:
        a user who may create an operator in the search path could have the worker call a function.
        """
        protocol: Any = self._protocol  # type: ignore[attr-defined]  # the driver has no public name for it
        protocol.get_settings().register_data_types(_ARRAYS)
