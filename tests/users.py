"""Users of the broker with few permissions, and of the database."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

from sandbox import RabbitMQ


def login(url: str, user: str, password: str) -> str:
    """The URL with another user."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"))


@contextmanager
def user_who_may(
    rabbitmq: RabbitMQ, amqp_url: str, *, configure: str = "", write: str = "", read: str = ""
) -> Iterator[str]:
    """The URL of a virtual host for a new user with these permissions there."""
    name, password = f"u{secrets.token_hex(4)}", "secret"
    vhost = urlsplit(amqp_url).path[1:]
    rabbitmq.api("PUT", f"/users/{name}", {"password": password, "tags": ""})
    try:
        permissions = {"configure": configure, "write": write, "read": read}
        rabbitmq.api("PUT", f"/permissions/{vhost}/{name}", permissions)
        yield login(amqp_url, name, password)
    finally:
        rabbitmq.api("DELETE", f"/users/{name}")
