"""Users and their roles, and the password file: a user on each line, with a password hashed with scrypt."""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Self, TypeAlias


class Role(StrEnum):
    """Look, without bodies and rows; act: replay, edit, discard and send; and see bodies and rows."""

    LOOK = "look"
    ACT = "act"
    BODIES = "bodies"


ALL: Final = frozenset(Role)
_COMMENT: Final = "#"
"""How the lines of a password file begin that are no users."""


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


class PasswordFileError(ValueError):
    """The password file cannot be used; the text says why, without its content."""


@dataclass(frozen=True, slots=True)
class Password:
    """The hash of a password, and the roles of its user."""

    roles: frozenset[Role]
    salt: bytes
    hash: bytes


class PasswordFile:
    """Users with their roles and hashed passwords, one a line: `name:roles:scrypt:salt:hash`."""

    def __init__(self, users: Mapping[str, Password]) -> None:
        self._users = users
        self._nobody = Password(frozenset(), b"\0" * 16, b"")
        self._secret = secrets.token_bytes(32)
        self._known: dict[bytes, str] = {}  # credentials that were right, as keyed hashes: scrypt is slow by intention

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises `PasswordFileError`."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PasswordFileError(f"cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
        users, numbers = dict[str, Password](), dict[str, int]()
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.startswith(_COMMENT):
                try:
                    name, password = _parsed(line.strip())
                except ValueError:
                    advice = "make one with `task-activity-log console --password-for NAME`"
                    raise PasswordFileError(f"line {number} is not one of a password file: {advice}") from None
                if name in users:
                    raise PasswordFileError(
                        f"line {number} is a second line for the user of line {numbers[name]}: remove one"
                    )
                users[name], numbers[name] = password, number
        if not users:
            raise PasswordFileError("has no users")
        return cls(users)

    def user(self, name: str, password: str) -> User | None:
        """The user with this name and password. Slow the first time: call it in a thread."""
        credentials = hmac.digest(self._secret, f"{len(name)}:{name}{password}".encode("utf-8", "replace"), "sha256")
        if self._known.get(credentials) != name:
            found = self._users.get(name, self._nobody)  # an unknown name takes as long as a wrong password
            if not hmac.compare_digest(found.hash, _scrypt(password, found.salt)):
                return None
            self._known[credentials] = name  # no more than there are users: a wrong password is not remembered
        return User(name, self._users[name].roles)


class CurrentPasswordFile:
    """A password file as it is now: it is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises `PasswordFileError`."""
        self._path = path
        self._read: tuple[_Version, PasswordFile | PasswordFileError] = _version(path), PasswordFile.read(path)
        """In one piece: two threads may read it at once, and then what was read last may be the older of the two."""

    def users(self) -> PasswordFile:
        """Its users. Raises `PasswordFileError`: it was changed, and cannot be used. Then nobody is known, not even before.

        It may wait for a disk: call it in a thread.
        """
        version, (known, found) = _version(self._path), self._read
        if version != known:
            try:
                found = PasswordFile.read(self._path)
            except PasswordFileError as error:
                found = error
            self._read = version, found
        if isinstance(found, PasswordFileError):
            raise PasswordFileError(str(found))
        return found


_Version: TypeAlias = tuple[int, ...]


def _version(path: Path) -> _Version:
    """What differs when a file was written, replaced, or given to somebody else; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def password_line(name: str, password: str, roles: Iterable[Role] = Role) -> str:
    """The line of a password file for a user. Raises `ValueError` for a name that cannot be in it."""
    if not name or ":" in name or name != name.strip() or not name.isprintable() or name.startswith(_COMMENT):
        raise ValueError(f"the name should have no colon and no white space at its ends, and not begin with {_COMMENT}")
    salt = secrets.token_bytes(16)
    return ":".join(
        (name, ",".join(roles), "scrypt", *(b64encode(part).decode() for part in (salt, _scrypt(password, salt))))
    )


def _parsed(line: str) -> tuple[str, Password]:
    name, roles, kind, salt, hashed = line.split(":")
    if not name or kind != "scrypt":
        raise ValueError
    found = frozenset(map(Role, filter(None, roles.split(","))))
    return name, Password(found, b64decode(salt, validate=True), b64decode(hashed, validate=True))


def _scrypt(password: str, salt: bytes) -> bytes:
    """The hash of a password: 16 MiB and about 50 ms. Other costs are to get another name in the password file."""
    return hashlib.scrypt(password.encode("utf-8", "replace"), salt=salt, n=2**14, r=8, p=1, maxmem=2**28, dklen=32)
