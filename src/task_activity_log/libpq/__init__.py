"""libpq's way to name a database: connection strings, options, environment variables and files.

What psql takes is taken, or refused by name, because an option that is silently ignored may be one that protects. The
rules are in the PostgreSQL documentation, chapter libpq: "Connection Strings", "Parameter Key Words", "Environment
Variables", "The Password File", "The Connection Service File".

target   where to connect and how, from all of these together
options  each option: its variable, and which values are taken
strings  `postgresql://…` and `host=… dbname=…`
files    the service file and the password file
trust    the TLS context for a host
"""

from task_activity_log.libpq.target import Host, Target, read
from task_activity_log.libpq.trust import is_certificate_checked

__all__ = ["Host", "Target", "is_certificate_checked", "read"]
