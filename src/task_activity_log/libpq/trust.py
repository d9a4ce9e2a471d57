"""TLS as `sslmode` and its kin have it: the context for one host."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from task_activity_log.libpq.target import Host, Target
from task_activity_log.tls import Tls


class NamedContext(ssl.SSLContext):
    """A context that checks the certificate of a host by its name, although the connection is opened by its address.

    asyncio's streams and uvloop's pass the text that they connect to as the server's name.
    """

    host_name: str | None = None
    """The name that the server gets and its certificate should have. None: no name is sent (SNI)."""

    def wrap_bio(self, incoming: Any, outgoing: Any, server_side: bool = False, *_: Any, **__: Any) -> ssl.SSLObject:  # noqa: FBT002 - the standard library's signature
        """As in the standard library, with `host_name`."""
        return super().wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=self.host_name)


def context(target: Target, host: Host, tls: Tls | None) -> NamedContext | None:
    """The context for a connection to this host; None: without TLS, as over a socket of this machine.

    Whatever `tls` has takes the place of the options, and the server's certificate and name are then always checked. Lists of
    revoked certificates, which only the options can have, count in both cases.

    Raises:
        OSError: a file cannot be read, or does not contain what it should. `strerror` names it.
    """
    options, mode = target.options, target.options["sslmode"]
    if host.socket is not None or (tls is None and mode == "disable"):
        return None
    made = NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    made.host_name = None if options.get("sslsni") == "0" and tls is None else host.name or host.address
    made.minimum_version = _version(options.get("ssl_min_protocol_version", "TLSv1.2"))
    if "ssl_max_protocol_version" in options:
        made.maximum_version = _version(options["ssl_max_protocol_version"])
    if ssl.HAS_ALPN:
        made.set_alpn_protocols(["postgresql"])  # sslnegotiation=direct needs it
    if file := options.get("sslkeylogfile"):
        with _named(f"sslkeylogfile {file}"):
            made.keylog_filename = file
    if tls is not None:
        with _named("WORKER_DATABASE_…_FILE"):
            tls.fill(made)
        _revoke(made, options.get("sslcrl"), options.get("sslcrldir"))
        return made
    _trust(made, target, mode)
    _identify(made, target)
    return made


def is_certificate_checked(target: Target) -> bool:
    """Whether the options have the server's certificate checked, if the connection is encrypted.

    As in libpq: whenever there is a file of authorities, whatever the mode.
    """
    return target.options["sslmode"].startswith("verify") or _root(target) is not None


def _root(target: Target) -> str | None:
    """The file with the authorities, or `system`; None if none is named."""
    return target.options.get("sslrootcert") or _at_home(target, "root.crt")


def _trust(made: ssl.SSLContext, target: Target, mode: str) -> None:
    """Whose certificates are accepted."""
    root = _root(target)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if not is_certificate_checked(target):
        return
    made.verify_mode = ssl.CERT_REQUIRED
    if root in (None, "system"):
        made.load_default_certs()
        # The system's authorities sign for everybody, so without the name a certificate proves nothing.
        made.check_hostname = True
    else:
        with _named(f"sslrootcert {root}"):
            made.load_verify_locations(cafile=root)
        made.check_hostname = mode == "verify-full"
    _revoke(made, target.options.get("sslcrl") or _at_home(target, "root.crl"), target.options.get("sslcrldir"))


def _revoke(made: ssl.SSLContext, revoked: str | None, directory: str | None) -> None:
    """Which certificates are no longer accepted: those in a file, in a directory, or in both."""
    if revoked or directory:
        with _named(f"sslcrl {revoked}" if revoked else f"sslcrldir {directory}"):
            made.load_verify_locations(cafile=revoked, capath=directory)
        made.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _identify(made: ssl.SSLContext, target: Target) -> None:
    """Our own certificate, for servers that ask for one."""
    options = target.options
    certificate = options.get("sslcert") or _at_home(target, "postgresql.crt")
    if certificate is None or options.get("sslcertmode") == "disable":
        return
    key = options.get("sslkey") or _at_home(target, "postgresql.key")
    with _named(f"sslcert {certificate}" + (f" with sslkey {key}" if key else " without sslkey")):
        made.load_cert_chain(certificate, key, password=options.get("sslpassword", ""))


@contextmanager
def _named(files: str) -> Iterator[None]:
    """An error names these files, and not a line of OpenSSL's code."""
    try:
        yield
    except OSError as error:
        reason: str | None = error.strerror
        if isinstance(error, ssl.SSLError):
            known = error.reason and error.reason.replace("_", " ").lower()
            reason = known or "not PEM, or encrypted with another password"
        raise OSError(error.errno, f"{files} cannot be used ({reason})") from None


def _at_home(target: Target, name: str) -> str | None:
    path = target.home and Path(target.home, ".postgresql", name)
    return str(path) if path and path.exists() else None


def _version(name: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[name.replace(".", "_")]
