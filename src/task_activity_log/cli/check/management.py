"""The management API of RabbitMQ, read only."""

from __future__ import annotations

import base64
import http.client
import json
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from task_activity_log.tls import Tls

_SECONDS = 10


class ManagementError(Exception):
    """The API gave no usable answer; the text is one line without secrets."""


class Management:
    """The management API at a URL."""

    def __init__(self, url: str, tls: Tls | None) -> None:
        self._parts = urlsplit(url)
        self._tls = tls
        login = f"{unquote(self._parts.username or 'guest')}:{unquote(self._parts.password or 'guest')}"
        self._headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}

    def get(self, *path: str) -> Any:
        """The answer to a path below `/api`; None if what is asked about does not exist.

        Raises:
            ManagementError: there is no answer, or the user may not ask this.
        """
        where = "/".join(quote(part, safe="") for part in path)
        connection = self._connection()
        try:
            connection.request("GET", f"{self._parts.path.rstrip('/')}/api/{where}", headers=self._headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ManagementError(f"no answer ({getattr(error, 'strerror', None) or type(error).__name__})") from None
        finally:
            connection.close()
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

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "localhost", self._parts.port
        if self._parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=_SECONDS)
        context = self._tls.context() if self._tls else None
        return http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=context)
