"""Connection strings: the two forms that libpq reads, as options by name. No error quotes a value."""

import re

SCHEMES = ("postgresql://", "postgres://")
_ENCODE = "encode these characters in the user name and the password: / is %2F, ? is %3F, # is %23, @ is %40, : is %3A, % is %25"
_PAIR = re.compile(r"\s*([^\s=]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?)(?=\s|$)", re.DOTALL)


class Unquotable(str):
    """The name of an option that may be a part of a password, and so must not be shown."""

    __slots__ = ()


def split(text: str) -> dict[str, str]:
    """The options of a connection string, in either form. They are not checked.

    Raises:
        ValueError: it is neither form.
    """
    if text.startswith(SCHEMES):
        return _of_url(text.partition("://")[2])
    if "://" in text.partition("=")[0] or "=" not in text:
        raise ValueError("should begin with postgresql://, or have options such as host=… dbname=…")
    return _of_pairs(text)


def _of_url(rest: str) -> dict[str, str]:
    """As `conninfo_uri_parse_options` in libpq. The first @ ends the user and the password, unless a / comes before."""
    found: dict[str, str] = {}
    if (login := re.match("[^@/]*@", rest)) is not None:
        rest = rest[login.end() :]
        user, _, password = login[0][:-1].partition(":")
        found |= {"user": _decoded(user), "password": _decoded(password)}
    hosts = re.match(r"[^/?]*", rest)
    assert hosts is not None  # noqa: S101 - it matches every text
    rest = rest[hosts.end() :]
    names, ports = zip(*map(_host, hosts[0].split(",")), strict=True)
    path, _, query = rest.partition("?")
    if "@" in path:  # it may be the rest of a password, and names of databases are shown
        raise ValueError(f"has an @ in the name of the database; {_ENCODE}, also in that name")
    found |= {"host": _decoded(",".join(names)), "dbname": _decoded(path[1:])}
    found["port"] = _decoded(",".join(ports)) if any(ports) else ""
    found = {name: value for name, value in found.items() if value}
    return found | _of_query(query, hidden="@" in path + query)


def _host(text: str) -> tuple[str, str]:
    """A host and its port. An IPv6 address is in brackets."""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[]*))(?::(.*))?", text)
    if match is None:
        raise ValueError(f"has a host that cannot be read; {_ENCODE}")
    return match[1] or match[2] or "", match[3] or ""


def _of_query(query: str, *, hidden: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    before = ""
    for part in query.removesuffix("&").split("&") if query else ():
        if part.count("=") != 1:
            raise ValueError(f"has an option that is not of the form name=value; {_ENCODE}")
        name, value = map(_decoded, part.split("="))
        if (name, value) == ("ssl", "true"):  # as JDBC has it
            name, value = "sslmode", "require"
        found[Unquotable(name) if hidden or before == "password" else name] = value
        before = name
    return found


def _of_pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    before, at = "", 0
    while text[at:].strip():
        pair = _PAIR.match(text, at)
        if pair is None:
            raise ValueError("should be a postgresql:// URL, or pairs of the form name=value or name='a value'")
        name = pair[1]
        found[Unquotable(name) if before == "password" else name] = re.sub(
            r"(?s)\\(.)", r"\1", pair[2] or pair[3] or ""
        )
        before, at = name, pair.end()
    return found


def _decoded(text: str) -> str:
    """Percent-encoding undone. A plus is a plus."""
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", text):
        raise ValueError(f"has a % that is not followed by two hexadecimal digits; {_ENCODE}")
    try:
        return re.sub(rb"%(..)", lambda escape: bytes.fromhex(escape[1].decode("ascii")), text.encode("utf-8")).decode(
            "utf-8"
        )
    except UnicodeError:
        raise ValueError("is not UTF-8") from None
