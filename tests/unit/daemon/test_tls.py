"""Certificates: what is wrong with them is said before they are used; whom a listening socket lets in."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import uvloop

from memoria.daemon.tls import ServerContext, read_certificate
from memoria.errors import ConfigError, Problem
from tests.certificates import FOLDER, certificate, copied, trusting, with_tls
from tests.unprivileged import UNPRIVILEGED


def problems(cert: Path, key: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_certificate(with_tls(cert, key))
    assert all(problem.hint for problem in caught.value.problems)
    return [problem.what for problem in caught.value.problems]


def warnings(cert: Path, key: Path | None = None) -> tuple[Problem, ...]:
    found = read_certificate(with_tls(cert, key))
    assert found is not None
    return found.warnings


def test_a_pair_or_one_file_of_both_is_taken_without_a_word(tmp_path: Path) -> None:
    cert, key = copied(tmp_path, "server.pem", "server.key")
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + cert.read_text())
    both.chmod(0o600)
    for found in (read_certificate(with_tls(cert, key)), read_certificate(with_tls(both))):
        assert found is not None
        assert found.warnings == ()
        assert found.expires == ssl.cert_time_to_seconds("Jan  1 00:00:00 2120 GMT")
        der = ssl.PEM_cert_to_DER_cert(cert.read_text())
        assert found.sha256 == sha256(der).hexdigest()


def test_files_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "a.pem", tmp_path / "b.key") == [
        f"cannot read {tmp_path}/a.pem: no such file or directory",
        f"cannot read {tmp_path}/b.key: no such file or directory",
    ]


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert problems(tmp_path, tmp_path / "pipe") == [
        f"cannot read {tmp_path}: not a regular file",
        f"cannot read {tmp_path}/pipe: not a regular file",
    ]


def test_a_file_of_another_user_cannot_be_read(tmp_path: Path) -> None:
    cert, key = copied(tmp_path, "server.pem", "server.key")
    key.chmod(0)
    script = (
        "from tests.certificates import *\nfrom memoria.errors import *\n"
        f"try: read_certificate(with_tls(Path({str(cert)!r}), Path({str(key)!r})))\n"
        "except ConfigError as error: print(error)"
    )
    run = [*UNPRIVILEGED, sys.executable, "-c", script]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=FOLDER.parents[2])
    assert f"cannot read {key}: permission denied" in done.stdout


def test_what_is_not_pem_or_the_other_file_is_named(tmp_path: Path) -> None:
    cert, key, note = FOLDER / "server.pem", FOLDER / "server.key", FOLDER / "README.md"
    assert problems(note, key) == [f"no certificate in {note}"]
    assert problems(key, cert) == [f"no certificate in {key}", f"no private key in {cert}"]
    assert problems(cert) == [f"no private key in {cert}"]
    der = tmp_path / "der"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(cert.read_text()))
    assert problems(der, key) == [f"no certificate in {der}"]
    damaged = tmp_path / "damaged.pem"
    damaged.write_text(cert.read_text().replace("M", "*", 3))
    assert problems(damaged, key)[0].startswith(f"{damaged} and {key} cannot be used: ")


def test_a_key_of_another_certificate_or_with_a_password_is_refused() -> None:
    cert, encrypted = FOLDER / "server.pem", FOLDER / "encrypted.key"
    assert problems(cert, FOLDER / "renewed.key") == [
        f"the key is not that of the first certificate in {cert}"
    ]
    assert problems(cert, encrypted) == [f"the private key in {encrypted} has a password"]


def test_a_certificate_that_no_client_takes_from_a_server_is_refused() -> None:
    cert = FOLDER / "client_only.pem"
    assert problems(cert) == [f"clients would refuse {cert}: unsuitable certificate purpose"]


@pytest.mark.parametrize(
    ("name", "what"),
    [("expired", "expired on 2021-01-01 00:00 UTC"), ("early", "is not valid before 2110-01-01 00:00 UTC")],
)
def test_one_out_of_its_time_is_a_warning(tmp_path: Path, name: str, what: str) -> None:
    cert, key = copied(tmp_path, f"{name}.pem", "server.key")
    (warning,) = warnings(cert, key)
    assert warning.what == f"{cert} {what}"


def test_a_key_that_all_users_may_read_is_a_warning(tmp_path: Path) -> None:
    cert, key = copied(tmp_path, "server.pem", "server.key")
    key.chmod(0o640)  # of a group, as Debian's ssl-cert
    assert warnings(cert, key) == ()
    key.chmod(0o644)
    (warning,) = warnings(cert, key)
    assert warning.hint == f"chmod 600 {key}"


def test_each_handshake_has_the_certificate_in_force() -> None:
    async def main() -> None:
        context = ServerContext.make(certificate("server"), most=10)
        async with serving(context) as port:
            old = await connect(port, "server")
            context.certificate = certificate("renewed")
            new = await connect(port, "renewed")
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(port, "server")
            for end in (old, new):
                assert await echo(end) == b"ping"

    uvloop.run(asyncio.wait_for(main(), 20))


def test_silent_clients_count_as_connections_and_are_closed_in_time() -> None:
    async def main() -> None:
        context = ServerContext.make(certificate(), most=3)
        async with serving(context, handshake=1.0) as port:
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await connect(port, "server")  # there is no room for it
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()
            assert await echo(await connect(port, "server")) == b"ping"

    uvloop.run(asyncio.wait_for(main(), 20))


End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class serving:  # noqa: N801 (used as a function)
    """Echoes what comes."""

    def __init__(self, context: ServerContext, *, handshake: float = 10.0) -> None:
        self._context, self._handshake = context, handshake

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(
            self._echo, "127.0.0.1", 0, ssl=self._context, ssl_handshake_timeout=self._handshake
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.transport.abort()


async def connect(port: int, trusts: str) -> End:
    return await asyncio.open_connection(
        "127.0.0.1", port, ssl=trusting(trusts), server_hostname="memoria.test"
    )


async def echo(end: End) -> bytes:
    reader, writer = end
    writer.write(b"ping\n")
    line = await reader.readline()
    writer.transport.abort()
    return line.strip()
