"""The management API of RabbitMQ, read only."""

import base64
import json
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from task_activity_log.tls import Tls

_SECONDS = 10


class ManagementError(Exception):
    """The API gave no usable answer; the text is one line without secrets."""


class Management:
    """The management API at a URL. No proxy is used and no redirect is followed: they would learn the password."""

    def __init__(self, url: str, tls: Tls | None) -> None:
        parts = urlsplit(url)
        host = parts.hostname or "localhost"
        if parts.scheme == "http":
            self._connection = HTTPConnection(host, parts.port, timeout=_SECONDS)
        else:
            context = tls.context() if tls else None
            self._connection = HTTPSConnection(host, parts.port, timeout=_SECONDS, context=context)
        self._root = f"{parts.path.rstrip('/')}/api/"
        login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        self._headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}

    def get(self, *path: str) -> Any:
        """The answer to a path below `/api`, or `ManagementError`; None if what is asked about does not exist."""
        where = self._root + "/".join(quote(part, safe="") for part in path)
        try:
            self._connection.request("GET", where, headers=self._headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, HTTPException) as error:
            raise ManagementError(f"no answer ({getattr(error, 'strerror', None) or type(error).__name__})") from None
        finally:
            self._connection.close()  # the next request opens it again
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        if answer.status == HTTPStatus.UNAUTHORIZED:
            raise ManagementError("this user has no access")
        if answer.status != HTTPStatus.OK:
            raise ManagementError(f"answered with {answer.status}")
        try:
            return json.loads(text)
        except ValueError:
            raise ManagementError("this is not the management API of RabbitMQ") from None
