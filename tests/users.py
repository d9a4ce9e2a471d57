"""Users of the broker with few permissions."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

from sandbox import RabbitMQ


@contextmanager
def user_who_may(
    rabbitmq: RabbitMQ, amqp_url: str, *, configure: str = "", write: str = "", read: str = ""
) -> Iterator[str]:
    """The URL of a virtual host for a new user with these permissions there."""
    name, password = f"u{secrets.token_hex(4)}", "secret"
    parts = urlsplit(amqp_url)
    rabbitmq.api("PUT", f"/users/{name}", {"password": password, "tags": ""})
    try:
        permissions = {"configure": configure, "write": write, "read": read}
        rabbitmq.api("PUT", f"/permissions/{parts.path[1:]}/{name}", permissions)
        yield urlunsplit(parts._replace(netloc=f"{name}:{password}@{parts.netloc.rpartition('@')[2]}"))
    finally:
        rabbitmq.api("DELETE", f"/users/{name}")
