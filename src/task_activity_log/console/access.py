"""Who may do what: users by a trusted header, by a password, or everybody on this machine; and where a form came from.

Pure, except for reading the password file.
"""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Final, Self

_N, _R, _P = 2**14, 8, 1  # the costs of scrypt: 16 MiB and about 50 ms for each password
_MOST_N, _MOST_R = 2**18, 16
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Role(StrEnum):
    """What a user may do."""

    LOOK = "look"
    """See every page, without the bodies of messages and the values of rows."""
    ACT = "act"
    """Replay, edit, discard and send."""
    BODIES = "bodies"
    """See the bodies of messages and the values of rows."""


ALL: Final = frozenset(Role)


@dataclass(frozen=True, slots=True)
class User:
    """Who asks, and what they may do."""

    name: str
    roles: frozenset[Role]

    @property
    def acts(self) -> bool:
        """Whether they may replay, edit, discard and send."""
        return Role.ACT in self.roles

    @property
    def sees_bodies(self) -> bool:
        """Whether they see the bodies of messages and the values of rows."""
        return Role.BODIES in self.roles


class Denied(Exception):
    """A request is refused; the text is one sentence that says why, and what to do."""

    def __init__(self, sentence: str, status: int = 403) -> None:
        super().__init__(sentence)
        self.status = status


class PasswordFileError(Exception):
    """The password file cannot be used; the text says why, without its content."""


@dataclass(frozen=True, slots=True)
class Password:
    """The hash of a password, and the roles of its user."""

    roles: frozenset[Role]
    n: int
    r: int
    p: int
    salt: bytes
    hash: bytes

    def matches(self, password: str) -> bool:
        """Whether this is the password. It takes about 50 ms."""
        return hmac.compare_digest(self.hash, _scrypt(password, self.salt, self.n, self.r, self.p))


class PasswordFile:
    """Users with their roles and hashed passwords, one a line: `name:roles:scrypt:n:r:p:salt:hash`."""

    def __init__(self, users: Mapping[str, Password]) -> None:
        self._users = users
        self._nobody = Password(frozenset(), _N, _R, _P, b"\0" * 16, b"")
        self._secret = secrets.token_bytes(32)
        self._known: dict[bytes, str] = {}  # credentials that were right, as keyed hashes: scrypt is slow by intention

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises `PasswordFileError`."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PasswordFileError(f"cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
        users = {}
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                try:
                    name, password = _parsed(line.strip())
                except ValueError:
                    advice = "make one with `task-activity-log console --password-for NAME`"
                    raise PasswordFileError(f"line {number} is not one of a password file: {advice}") from None
                users[name] = password
        if not users:
            raise PasswordFileError("has no users")
        return cls(users)

    def user(self, name: str, password: str) -> User | None:
        """The user with this name and password. Slow the first time: call it in a thread."""
        credentials = hmac.digest(self._secret, f"{len(name)}:{name}{password}".encode("utf-8", "replace"), "sha256")
        if self._known.get(credentials) != name:
            found = self._users.get(name, self._nobody)  # an unknown name takes as long as a wrong password
            if not found.matches(password):
                return None
            self._known[credentials] = name  # no more than there are users: a wrong password is not remembered
        return User(name, self._users[name].roles)


def password_line(name: str, password: str, roles: Iterable[Role] = Role) -> str:
    """The line of a password file for a user. Raises `ValueError` for a name that cannot be in it."""
    if not name or ":" in name or name != name.strip() or not name.isprintable():
        raise ValueError("the name should have no colon and no white space at its ends")
    salt = secrets.token_bytes(16)
    encoded = (b64encode(part).decode() for part in (salt, _scrypt(password, salt, _N, _R, _P)))
    return ":".join((name, ",".join(roles), "scrypt", str(_N), str(_R), str(_P), *encoded))


def _parsed(line: str) -> tuple[str, Password]:
    name, roles, kind, n, r, p, salt, hashed = line.split(":")
    costs = int(n), int(r), int(p)
    known = kind == "scrypt" and costs[0] <= _MOST_N and costs[1] <= _MOST_R and costs[2] == 1
    if not known or not name:
        raise ValueError
    found = frozenset(map(Role, filter(None, roles.split(","))))
    return name, Password(found, *costs, b64decode(salt, validate=True), b64decode(hashed, validate=True))


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "replace"), salt=salt, n=n, r=r, p=p, maxmem=2**28, dklen=32)


@dataclass(frozen=True, slots=True)
class Proxy:
    """The proxies whose headers are trusted, and what these mean."""

    networks: Sequence[IPv4Network | IPv6Network]
    user_header: str
    groups_header: str
    groups: Mapping[Role, Sequence[str]]
    """The groups that have each role; `*` means every user."""

    def user(self, peer: str, headers: Mapping[str, str]) -> User | None:
        """The user that a proxy names; None if the request does not come from a proxy.

        Raises `Denied`: the header comes from elsewhere, or the proxy names nobody, or one who may not look.
        """
        name = headers.get(self.user_header, "").strip()
        if not self.trusts(peer):
            if name:
                raise Denied(
                    f"The header {self.user_header} came from {peer}, which is not one of CONSOLE_PROXY_ADDRESSES: it is not"
                    " trusted, and nothing was done."
                )
            return None
        if not name:
            raise Denied(f"The proxy named no user in the header {self.user_header}.", 401)
        has = {group.strip() for group in headers.get(self.groups_header, "").split(",")} | {"*"}
        return User(name, frozenset(role for role, groups in self.groups.items() if has & set(groups)))

    def trusts(self, peer: str) -> bool:
        """Whether the peer of a connection is one of the proxies."""
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self.networks)


def basic_credentials(header: str | None) -> tuple[str, str] | None:
    """The name and the password of an Authorization header; None if it has none that can be read."""
    kind, _, encoded = (header or "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        name, colon, password = b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        return None
    return (name, password) if colon else None


def require_local_name(host: str) -> None:
    """Without authentication, answer only to this machine's own names, so that no web site gets in by a name of its own.

    (A name in somebody's domain can be given the address 127.0.0.1: then the site's script could read every page.)
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name.lower() not in _LOCAL_NAMES:
        raise Denied("Without authentication the console answers only at localhost or 127.0.0.1.", 421)


class FormGuard:
    """Tokens that show that a form was made by this process for this user, and where a form may come from."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def token(self, user: User) -> str:
        """The token for the forms of a user."""
        return hmac.digest(self._secret, user.name.encode("utf-8", "replace"), "sha256").hex()

    def check(self, user: User, token: str, headers: Mapping[str, str], own_hosts: Iterable[str]) -> None:
        """Raise `Denied` unless a form was sent by one of our own pages, for this user."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        foreign = site not in (None, "same-origin") or (
            site is None and origin is not None and origin.partition("://")[2] not in set(own_hosts)
        )
        if foreign:
            raise Denied("This form was sent by another web site: nothing was done.")
        if not hmac.compare_digest(token.encode(), self.token(user).encode()):
            raise Denied("This page is older than the console's last start: nothing was done. Load it again.")
