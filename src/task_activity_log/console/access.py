"""Who asks: by the header of a proxy, by a password, or everybody on this machine; and where a form came from."""

import asyncio
import hmac
import secrets
from base64 import b64decode
from collections.abc import Mapping
from ipaddress import ip_address

from starlette.requests import Request

from task_activity_log.console.settings import ConsoleSettings
from task_activity_log.console.users import ALL, CurrentPasswordFile, PasswordFileError, Role, User

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Denied(Exception):
    """A request is refused; the text is one sentence that says why, and what to do."""

    def __init__(self, sentence: str, status: int = 403) -> None:
        super().__init__(sentence)
        self.status = status


class OldPage(Denied):
    """A form was made before the console's last start, or for another user. It can be shown again, with a new token."""


def require(allowed: bool, sentence: str, status: int = 403) -> None:
    """Raise `Denied` with this sentence unless it is allowed."""
    if not allowed:
        raise Denied(sentence, status)


class Access:
    """Finds out who asks, and whether a form is one of ours."""

    def __init__(self, own: ConsoleSettings) -> None:
        self._own = own
        self._passwords = CurrentPasswordFile(own.password_file) if own.password_file else None
        self._groups = {Role.LOOK: own.look_groups, Role.ACT: own.act_groups, Role.BODIES: own.bodies_groups}
        self._hashing = asyncio.Semaphore(2)  # more passwords at a time would take the CPU from the pages
        self._secret = secrets.token_bytes(32)

    async def user(self, request: Request) -> User:
        """Who asks. Raises `Denied`: it is not known, or they may not look."""
        user = self.by_proxy(request.client.host if request.client else "", request.headers)
        if user is None and self._passwords is not None:
            user = await self._by_password(self._passwords, request.headers.get("authorization"))
        elif user is None:
            require(
                not self._own.proxy_addresses, "The console is used through its proxy, which says who you are.", 401
            )
            require_local_name(request.headers.get("host", ""))
            user = User("local", ALL)
        require(Role.LOOK in user.roles, f"{user.name} may not look at this console: that takes the role look.")
        return user

    def by_proxy(self, peer: str, headers: Mapping[str, str]) -> User | None:
        """The user that a proxy names; None if the request does not come from a proxy.

        Raises `Denied`: the header comes from elsewhere, or the proxy names nobody.
        """
        header = self._own.proxy_user_header
        name = headers.get(header.lower(), "").strip()
        if not self._is_proxy(peer):
            untrusted = (
                f"The header {header} came from {peer}, which is not one of CONSOLE_PROXY_ADDRESSES: it is not trusted"
            )
            require(not name, f"{untrusted}, and nothing was done.")
            return None
        require(bool(name), f"The proxy named no user in the header {header}.", 401)
        has = {group.strip() for group in headers.get(self._own.proxy_groups_header.lower(), "").split(",")} | {"*"}
        return User(name, frozenset(role for role, groups in self._groups.items() if has & set(groups)))

    def _is_proxy(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)  # as a socket for both versions shows an address of IPv4
        return any((mapped or address) in network for network in self._own.proxy_addresses)

    async def _by_password(self, file: CurrentPasswordFile, header: str | None) -> User:
        try:
            passwords = await asyncio.to_thread(file.users)
        except PasswordFileError as error:
            raise Denied(
                f"CONSOLE_PASSWORD_FILE was changed and {error}. Until it is correct, nobody is let in.", 503
            ) from None
        credentials = basic_credentials(header)
        if credentials is None:
            raise Denied("The console asks for a user and a password.", 401)
        async with self._hashing:
            user = await asyncio.to_thread(passwords.user, *credentials)
        if user is None:
            raise Denied("This user or this password is wrong.", 401)
        return user

    def token(self, user: User) -> str:
        """What shows that a form was made by this process for this user."""
        return hmac.digest(self._secret, user.name.encode("utf-8", "replace"), "sha256").hex()

    def check_form(self, user: User, token: str, peer: str, headers: Mapping[str, str]) -> None:
        """Raise `Denied` unless a form was sent by one of our own pages, for this user; `OldPage` if it was one of ours."""
        own_hosts = {headers.get("host", ""), headers.get("x-forwarded-host", "") if self._is_proxy(peer) else ""}
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is None:  # an old browser
            site = "same-origin" if origin is None or origin.partition("://")[2] in own_hosts - {""} else "cross-site"
        require(site == "same-origin", "This form was sent by another web site: nothing was done.")
        if not hmac.compare_digest(token.encode(), self.token(user).encode()):
            raise OldPage(
                "This page was made for another user, or before the console was started: nothing was done. Load it again."
            )


def basic_credentials(header: str | None) -> tuple[str, str] | None:
    """The name and the password of an Authorization header; None if it has none that can be read."""
    kind, _, encoded = (header or "").partition(" ")
    try:
        name, colon, password = b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        return None
    return (name, password) if colon and kind.lower() == "basic" else None


def require_local_name(host: str) -> None:
    """Without authentication, answer only to this machine's own names, so that no web site gets in by a name of its own.

    (A name in somebody's domain can be given the address 127.0.0.1: then the site's script could read every page.)
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    sentence = "Without authentication the console answers only at localhost or 127.0.0.1."
    require(name.lower() in _LOCAL_NAMES, sentence, 421)
