"""TLS on the listening addresses: a certificate is checked whole before it is used, and replaced between two
handshakes, so that connections stay.

Sources: RFC 7468 (PEM), RFC 8446 4.4.2 (the order of a chain), SSL_CTX_use_certificate(3).
"""

from __future__ import annotations

import re
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import WeakSet

from memoria.config.model import Config, TlsFiles
from memoria.errors import ConfigError, Problem

MOST_BYTES = 1 << 20  # of a file; a chain takes some KiB
_CERTIFICATE = re.compile(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
_ALLOW_EXPIRED = 0x200000  # X509_V_FLAG_NO_CHECK_TIME
_BEGINS = "it must begin with the server's own certificate, then those that signed it"


@dataclass(frozen=True, slots=True)
class Certificate:
    """`context` has it loaded, with its key. `sha256` is that of the server's own certificate, in hex;
    `expires` in Unix time."""

    context: ssl.SSLContext
    sha256: str
    expires: float
    warnings: tuple[Problem, ...]


class ServerContext(ssl.SSLContext):
    """What listening sockets are given once. Each handshake is made with the `certificate` in force then;
    None: TLS is off."""

    certificate: Certificate | None = None
    most = 0
    _open: WeakSet[ssl.SSLObject]

    @classmethod
    def make(cls, certificate: Certificate | None, *, most: int) -> ServerContext:
        """`most`: connections at once, those in their handshake included; nothing is left of any other."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context.certificate, context.most, context._open = certificate, most, WeakSet()
        return context

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *_: Any, **__: Any) -> ssl.SSLObject:
        """A server's end. Raises `ssl.SSLError`, and the connection is closed."""
        if self.certificate is None or len(self._open) >= self.most:
            raise ssl.SSLError("too many connections")
        connection = self.certificate.context.wrap_bio(incoming, outgoing, server_side=True)
        self._open.add(connection)
        return connection


def read_certificate(config: Config) -> Certificate | None:
    """None where the configuration has no `tls`. Raises `ConfigError` with every problem of its files."""
    if config.tls_files is None:
        return None
    files, problems = config.tls_files, list[Problem]()
    chain = _read(config, "cert", files.cert, problems)
    key = _read(config, "key", files.key, problems) if files.key else chain
    if chain is not None and not _CERTIFICATE.search(chain):
        hint = "a key is there: are `cert` and `key` swapped?" if _KEY.search(chain) else _not_pem("x509")
        problems.append(_problem(config, "cert", f"no certificate in {files.cert}", hint))
    if key is not None and not _KEY.search(key):
        if files.key is None:
            hint = "write `key: FILE`, or append the key to the certificate's file"
        elif _CERTIFICATE.search(key):
            hint = "a certificate is there: are `cert` and `key` swapped?"
        else:
            hint = _not_pem("pkey")
        which = "key" if files.key else "cert"
        problems.append(_problem(config, which, f"no private key in {files.key or files.cert}", hint))
    if problems:
        raise ConfigError(problems)
    return _load(config, files)


def _read(config: Config, key: str, path: Path, problems: list[Problem]) -> str | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what, hint = "not a regular file", "name the file itself"
        elif status.st_size > MOST_BYTES:
            what, hint = "larger than any certificate", "name a PEM file"
        else:
            return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        hint = "relative paths start at the configuration's folder"
        if isinstance(error, PermissionError):
            hint = "let memoria's user read it: chgrp, chmod 640; or a systemd credential"
    problems.append(_problem(config, key, f"cannot read {path}: {what}", hint))
    return None


def _not_pem(kind: str) -> str:
    return f"it must be PEM text; of DER: openssl {kind} -inform der -in FILE -out NEW"


class _EncryptedError(Exception):
    pass


def _refuse_password() -> str:
    raise _EncryptedError  # OpenSSL would ask for one on the terminal


def _load(config: Config, files: TlsFiles) -> Certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    key, key_name = files.key or files.cert, "key" if files.key else "cert"
    try:
        context.load_cert_chain(files.cert, key, _refuse_password)
    except _EncryptedError:
        raise ConfigError(
            _problem(
                config,
                key_name,
                f"the private key in {key} has a password",
                "remove it: openssl pkey -in FILE -out NEW; and chmod 600",
            )
        ) from None
    except OSError as error:  # ssl.SSLError is one
        what, hint = _reason(error, files)
        raise ConfigError(_problem(config, "cert", what, hint)) from None
    try:
        der, facts = _shake_hands(context)
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        hint = "is it a server's certificate (extended key usage `serverAuth`), with a supported key?"
        raise ConfigError(
            _problem(config, "cert", f"clients would refuse {files.cert}: {reason}", hint)
        ) from None
    warnings = tuple(_warnings(config, files, facts))
    return Certificate(
        context, sha256(der).hexdigest(), ssl.cert_time_to_seconds(facts["notAfter"]), warnings
    )


def _reason(error: OSError, files: TlsFiles) -> tuple[str, str]:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    if reason == "KEY_VALUES_MISMATCH":
        what = f"the key is not that of the first certificate in {files.cert}"
        return what, f"{_BEGINS}; or name the key that it was made with"
    if reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"):
        return f"{files.cert} is too weak: {reason}", "make a new one, with RSA of 2048 bits or P-256"
    both = f"{files.cert} and {files.key}" if files.key else str(files.cert)
    return (
        f"{both} cannot be used: {reason}",
        "is a file damaged? openssl x509 -in FILE and pkey -in FILE tell",
    )


def _shake_hands(context: ssl.SSLContext) -> tuple[bytes, dict[str, Any]]:
    """The server's own certificate, and what a client that trusts it reads in it, at whatever time. Raises
    `ssl.SSLError` for one that no client would take. Only in memory."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    der = _connect(context, trusting).getpeercert(binary_form=True) or b""
    trusting.verify_mode = ssl.CERT_REQUIRED
    trusting.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    trusting.verify_flags = ssl.VerifyFlags(trusting.verify_flags | _ALLOW_EXPIRED)
    trusting.load_verify_locations(cadata=der)
    return der, dict(_connect(context, trusting).getpeercert() or {})


def _connect(context: ssl.SSLContext, trusting: ssl.SSLContext) -> ssl.SSLObject:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server)
    waiting = [client, server]
    while waiting:
        try:
            waiting[0].do_handshake()
        except ssl.SSLWantReadError:
            waiting.reverse()
        else:
            waiting.pop(0)
    return client


def _warnings(config: Config, files: TlsFiles, facts: dict[str, Any]) -> Iterator[Problem]:
    begins, ends = (ssl.cert_time_to_seconds(facts[name]) for name in ("notBefore", "notAfter"))
    now, hint = time.time(), "clients refuse it; renew it, then `memoria reload`"
    if now >= ends:
        yield _problem(config, "cert", f"{files.cert} expired on {_day(ends)}", hint)
    elif now < begins:
        hint = "clients refuse it until then; is this machine's clock right?"
        yield _problem(config, "cert", f"{files.cert} is not valid before {_day(begins)}", hint)
    key = files.key or files.cert
    if key.stat().st_mode & stat.S_IRWXO:
        yield _problem(
            config,
            "key" if files.key else "cert",
            f"other users of this machine may read the private key in {key}",
            f"chmod 600 {key}",
        )


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"


def _problem(config: Config, key: str, what: str, hint: str) -> Problem:
    mark = config.where("tls", key)
    return Problem(what, (f"{mark}  tls.{key}",) if mark else (), hint)
