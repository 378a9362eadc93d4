"""The sockets memoria listens on: the main address, every engine's own port, the admin socket."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memoria.config.model import Address, Config, ConfigPath
from memoria.config.report import key_name
from memoria.engine.process.port import holders, listens, problem_of, taken
from memoria.errors import Problem, UnavailableError

logger = logging.getLogger(__name__)

BACKLOG = 4096
# Seconds until the kernel drops a connection whose peer reads nothing (tcp(7)): closing it does not, as long
# as bytes are waiting to be sent. Accepted connections inherit it. Longer than the relay's own limit: the
# relay logs the disconnect and resets the connection; the kernel reports no reason, and nothing to the peer.
READER_TIMEOUT = 70


class Listeners:
    """The sockets of a configuration: the main one, then one per engine whose own port memoria answers
    (`transport: uds`). A host name may stand for several addresses, and so for several sockets."""

    def __init__(self, config: Config, given: Sequence[socket.socket] = ()) -> None:
        """`given` sockets listen already; those not in the configuration are closed. Raises
        `UnavailableError` with every address that cannot be bound, leaving none open."""
        wanted, self._bound = _wanted(config), dict[Address, list[socket.socket]]()
        self._late: dict[Address, ConfigPath] = {}
        self._engines_own = _engines_own(config)
        for listener in given:
            address = _address_of(listener, wanted)
            if address is None:
                logger.warning("closed, not in the configuration: %s", listener.getsockname())
                listener.close()
            else:
                _prepare(listener)
                self._bound.setdefault(address, []).append(listener)
        try:
            missing = {a: key for a, key in wanted.items() if a not in self._bound}
            self._bound |= _bind_all(config, missing, tried=self._engines_own)
        except UnavailableError:
            self.close()
            raise

    @property
    def sockets(self) -> list[socket.socket]:
        return [listener for bound in self._bound.values() for listener in bound]

    @property
    def are_late(self) -> bool:
        """Whether an engine has yet to give up some address."""
        return bool(self._late)

    def open_new(self, config: Config, own_pids: Collection[int] = ()) -> Change:
        """Listens on what another configuration adds. Nothing else changes until `commit`.

        Where only the host of a port changes, both sockets listen on it meanwhile. A port on which vLLM, one
        of the processes `own_pids`, still listens has to wait for its end (`open_late`). Raises
        `UnavailableError`."""
        wanted = _wanted(config)
        missing = {address: key for address, key in wanted.items() if address not in self._bound}
        left = {*self._engines_own, *(address.port for address in self._late)}
        late = {a: missing.pop(a) for a in tuple(missing) if a.port in left and listens(own_pids, a.port)}
        gone = [address for address in self._bound if address not in wanted]
        ports = {address.port for address in missing} & {address.port for address in gone}
        sharing = [listener for address in gone if address.port in ports for listener in self._bound[address]]
        engines_own, ours = _engines_own(config), {address.port for address in self._bound}
        ours |= self._engines_own.keys()  # a port of memoria or of an engine becomes free in time
        tried = {port: key for port, key in engines_own.items() if port not in ours}
        _share(sharing, True)
        try:
            opened = _bind_all(config, missing, shared=ports, tried=tried)
        finally:
            _share(sharing, False)
        return Change(opened, {address: self._bound[address] for address in gone}, engines_own, late)

    def open_late(self, config: Config) -> tuple[list[socket.socket], list[Problem]]:
        """Listens on what an engine has given up meanwhile; returns also why the rest cannot be bound yet."""
        opened: list[socket.socket] = []
        problems: list[Problem] = []
        for address, key in tuple(self._late.items()):
            try:
                self._bound[address] = _bind(address)
            except OSError as error:
                problems.append(_problem(config, address, key, error))
            else:
                del self._late[address]
                opened += self._bound[address]
        return opened, problems

    def commit(self, change: Change) -> None:
        """Takes over what `open_new` opened, and closes what it made superfluous."""
        self._engines_own, self._late = change.engines_own, dict(change.late)
        self._bound |= change.opened
        for address in change.closed:
            close(self._bound.pop(address))

    def close(self) -> None:
        close(self.sockets)


@dataclass(frozen=True, slots=True)
class Change:
    """Sockets by address: those that listen already, and those to close. `engines_own`: the ports that vLLM
    itself listens on. `late`: addresses that an engine has yet to give up."""

    opened: dict[Address, list[socket.socket]]
    closed: dict[Address, list[socket.socket]]
    engines_own: dict[int, ConfigPath]
    late: dict[Address, ConfigPath]

    @property
    def new(self) -> list[socket.socket]:
        return [listener for bound in self.opened.values() for listener in bound]

    @property
    def old(self) -> list[socket.socket]:
        return [listener for bound in self.closed.values() for listener in bound]


def unavailable(config: Config) -> list[Problem]:
    """The problems `Listeners` would have. Keeps nothing open, and accepts nothing meanwhile."""
    problems: list[Problem] = []
    for address, key in _wanted(config).items():
        try:
            close(_bind(address, accept=False))
        except OSError as error:
            problems.append(_problem(config, address, key, error))
    problems += _not_free(config, _engines_own(config))
    return problems


def _wanted(config: Config) -> dict[Address, ConfigPath]:
    own = {
        Address(config.listen.host, engine.port): ("engines", engine.name, "port")
        for engine in config.engines
        if engine.port is not None and engine.transport == "uds"
    }
    return {config.listen: ("listen",), **own}


def _engines_own(config: Config) -> dict[int, ConfigPath]:
    """The ports that vLLM listens on itself."""
    return {
        engine.port: ("engines", engine.name, "port")
        for engine in config.engines
        if engine.port is not None and engine.transport == "tcp"
    }


def _address_of(listener: socket.socket, wanted: Iterable[Address]) -> Address | None:
    """Which of the addresses a socket listens on."""
    for address in wanted:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        if any((listener.family, listener.getsockname()) == (family, where) for family, *_, where in found):
            return address
    return None


def _prepare(listener: socket.socket) -> None:
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, READER_TIMEOUT * 1000)
    listener.setblocking(False)


def _bind_all(
    config: Config,
    wanted: Mapping[Address, ConfigPath],
    *,
    shared: Collection[int] = (),
    tried: Mapping[int, ConfigPath],
) -> dict[Address, list[socket.socket]]:
    """`shared` ports have an earlier socket of ours, too. `tried` ports must only be free."""
    bound: dict[Address, list[socket.socket]] = {}
    problems: list[Problem] = []
    for address, key in wanted.items():
        try:
            bound[address] = _bind(address, share=address.port in shared)
        except OSError as error:
            problems.append(_problem(config, address, key, error))
    problems += _not_free(config, tried)
    if problems:
        for listeners in bound.values():
            close(listeners)
        raise UnavailableError(problems)
    return bound


def _not_free(config: Config, ports: Mapping[int, ConfigPath]) -> Iterator[Problem]:
    for port, key in ports.items():
        if (problem := problem_of(port)) is not None:
            yield replace(problem, where=(*_mark(config, key), *problem.where))


def _share(listeners: Iterable[socket.socket], on: bool) -> None:
    """Allows another socket of this user, with the same option, on the same port (socket(7))."""
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, on)


def bind_admin(path: Path) -> socket.socket:
    """A Unix socket that only its owner may open."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        hint = "name another folder with `runtime_dir`, or MEMORIA_RUNTIME_DIR"
        raise UnavailableError(
            Problem(f"cannot listen on {path}: {error.strerror or error}", hint=hint)
        ) from None
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    return listener


def close(sockets: Iterable[socket.socket]) -> None:
    for listener in sockets:
        listener.close()


def _bind(address: Address, *, share: bool = False, accept: bool = True) -> list[socket.socket]:
    """Listens on every address of the host, or (`accept` False) only binds. A family that this machine does
    not have is left out (`localhost` names ::1 also where IPv6 is off), as long as there is another."""
    bound: list[socket.socket] = []
    missing: OSError | None = None
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, where in found:
        try:
            bound.append(_listener(socket.socket(family, kind, protocol), where, share=share, accept=accept))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                close(bound)
                raise
            missing = error
    if missing is not None and not bound:
        raise missing
    return bound


def _listener(listener: socket.socket, where: tuple[Any, ...], *, share: bool, accept: bool) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _prepare(listener)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _share([listener], share)
        listener.bind(where)
        if accept:
            listener.listen(BACKLOG)  # fails if the port was taken since
        _share([listener], False)
    except OSError:
        listener.close()
        raise
    return listener


def _mark(config: Config, key: ConfigPath) -> list[str]:
    mark = config.where(*key)
    return [f"{mark}  {key_name(key)}"] if mark else []


def _problem(config: Config, address: Address, key: ConfigPath, error: OSError) -> Problem:
    where = _mark(config, key)
    if error.errno == errno.EADDRINUSE:
        return taken(address.port, [*where, *holders(address.port)])
    if error.errno == errno.EACCES:
        hint = "ports below 1024 need CAP_NET_BIND_SERVICE"
    elif isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        hint = "write an address of this machine (`ip address` lists them); 0.0.0.0 is all of them"
    else:
        hint = "choose another address or port"
    return Problem(f"cannot listen on {address}: {error.strerror or error}", tuple(where), hint)
