"""The certificates of tests/data/tls, and clients that trust them."""

from __future__ import annotations

import shutil
import ssl
from dataclasses import replace
from pathlib import Path

from memoria.config.model import Config, TlsFiles
from memoria.daemon.tls import Certificate, read_certificate
from tests.unit.commands import CONFIG

FOLDER = Path(__file__).parent / "data/tls"


def copied(folder: Path, *names: str) -> list[Path]:
    """Files that belong to their owner alone, as keys should; git does not keep that."""
    paths = []
    for name in names:
        path = folder / name
        shutil.copy(FOLDER / name, path)
        path.chmod(0o600)
        paths.append(path)
    return paths


def with_tls(cert: Path, key: Path | None = None) -> Config:
    return replace(CONFIG, tls_files=TlsFiles(cert, key))


def certificate(name: str = "server") -> Certificate:
    found = read_certificate(with_tls(FOLDER / f"{name}.pem", FOLDER / f"{name}.key"))
    assert found is not None
    return found


def trusting(*names: str) -> ssl.SSLContext:
    """Of a client."""
    context = ssl.create_default_context()
    for name in names or ("server",):
        context.load_verify_locations(FOLDER / f"{name}.pem")
    return context
