"""Where an engine listens: a Unix socket of its own, or a loopback port (`transport: tcp`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"


EngineAddress = UnixAddress | TcpAddress
