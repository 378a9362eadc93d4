"""Real sockets, and the problems of those that cannot be bound."""

from __future__ import annotations

import inspect
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from memoria.config.model import Address, Config
from memoria.daemon import listeners as listen
from memoria.errors import Mark, UnavailableError
from memoria.proxy.exchange.context import ProxyContext
from tests.ports import free_ports
from tests.unit.plans import config


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]


def free_port() -> int:
    (port,) = free_ports(1)
    return port


def listening(main: int, *own: int | None, host: str = "127.0.0.1") -> Config:
    planned = config({f"engine-{number}": "0.1" for number in range(len(own))})
    engines = tuple(replace(e, port=port) for e, port in zip(planned.engines, own, strict=True))
    marks = {("listen",): Mark("memoria.yaml", 1), **planned.marks}
    return replace(planned, listen=Address(host, main), engines=engines, marks=marks)


def ports(sockets: list[socket.socket]) -> list[int]:
    return [listener.getsockname()[1] for listener in sockets]


def test_the_main_port_and_every_engines_own_are_bound() -> None:
    wanted = [free_port(), free_port()]
    bound = listen.Listeners(listening(wanted[0], wanted[1], None)).sockets
    assert ports(bound) == wanted
    with socket.create_connection(("127.0.0.1", wanted[1]), timeout=10):
        pass
    listen.close(bound)


def left_to_vllm(main: int, own: int) -> Config:
    wanted = listening(main, own)
    return replace(wanted, engines=(replace(wanted.engines[0], transport="tcp"),))


def test_a_port_that_vllm_answers_itself_is_left_to_it() -> None:
    own = free_port()
    bound = listen.Listeners(left_to_vllm(free_port(), own)).sockets
    assert len(bound) == 1
    with socket.create_server(("127.0.0.1", own)):
        pass
    listen.close(bound)


def test_a_port_that_vllm_would_not_get_is_told_with_its_holder(taken: int) -> None:
    with pytest.raises(UnavailableError) as caught:
        listen.Listeners(left_to_vllm(free_port(), taken))
    (problem,) = caught.value.problems
    assert problem.what == f"port {taken} is in use"
    assert any(f"pid {os.getpid()} " in line for line in problem.where)


def test_a_port_that_vllm_has_already_is_no_problem_of_a_reload(taken: int) -> None:
    main = free_port()
    listeners = listen.Listeners(left_to_vllm(main, free_port()))
    with pytest.raises(UnavailableError, match=f"port {taken} is in use"):
        listeners.open_new(left_to_vllm(main, taken))
    own = free_port()
    listeners.commit(listeners.open_new(left_to_vllm(main, own)))
    with socket.create_server(("127.0.0.1", own)):  # the engine
        listeners.commit(listeners.open_new(left_to_vllm(main, own)))
    listeners.close()


def test_a_taken_port_is_told_with_its_holder_and_its_line(taken: int) -> None:
    with pytest.raises(UnavailableError) as caught:
        listen.Listeners(listening(taken))
    (problem,) = caught.value.problems
    assert problem.what == f"port {taken} is in use"
    assert problem.where[0] == "memoria.yaml:1  listen"
    assert problem.where[1].startswith(f"pid {os.getpid()}  ")
    assert problem.hint


def test_all_taken_ports_are_told_at_once_and_no_other_is_kept(taken: int) -> None:
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as other:
        also = other.getsockname()[1]
        with pytest.raises(UnavailableError) as caught:
            listen.Listeners(listening(free, taken, also))
    assert [problem.what for problem in caught.value.problems] == [
        f"port {taken} is in use",
        f"port {also} is in use",
    ]
    with socket.create_server(("127.0.0.1", free)):
        pass


def test_a_host_that_is_not_ours_is_a_problem() -> None:
    with pytest.raises(UnavailableError, match=r"cannot listen on 192\.0\.2\.1:0: Cannot assign"):
        listen.Listeners(listening(0, host="192.0.2.1"))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_a_problem_with_what_is(host: str) -> None:
    with pytest.raises(UnavailableError, match=f"cannot listen on {host}") as caught:
        listen.Listeners(listening(free_port(), host=host))
    assert "`ip address`" in (caught.value.problems[0].hint or "")


def test_a_port_can_be_bound_again_right_after_a_connection() -> None:
    port = free_port()
    for _ in range(2):
        (bound,) = listen.Listeners(listening(port)).sockets
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            pass
        bound.setblocking(True)
        bound.accept()[0].close()  # our side closes first and waits in TIME_WAIT
        listen.close([bound])


def test_who_takes_nothing_is_cut_by_the_relay_before_the_kernel_drops_it() -> None:
    client_idle = inspect.signature(ProxyContext).parameters["client_idle"].default
    with closing(listen.Listeners(listening(free_port()))) as listeners:
        for listener in listeners.sockets:
            timeout = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
            assert timeout >= client_idle + 5  # the relay's looks are a second apart


def test_other_addresses_are_opened_before_the_old_ones_are_closed() -> None:
    old, new, own = free_port(), free_port(), free_port()
    listeners = listen.Listeners(listening(old, own))
    change = listeners.open_new(listening(new, own))
    assert ports(listeners.sockets) == [old, own]
    for port in (old, new, own):
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    listeners.commit(change)
    assert ports(listeners.sockets) == [own, new]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old), timeout=10)
    listeners.close()


def test_the_same_port_on_another_address_is_never_without_a_listener() -> None:
    port = free_port()
    listeners = listen.Listeners(listening(port))
    change = listeners.open_new(listening(port, host="0.0.0.0"))
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    listeners.commit(change)
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    listeners.close()


def test_an_address_that_cannot_be_had_changes_nothing(taken: int) -> None:
    old = free_port()
    listeners = listen.Listeners(listening(old))
    with pytest.raises(UnavailableError, match=f"port {taken} is in use"):
        listeners.open_new(listening(taken))
    assert ports(listeners.sockets) == [old]
    listeners.close()


def test_the_admin_socket_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.touch()  # left over
    before = os.umask(0o022)
    os.umask(before)
    with listen.bind_admin(path):
        assert path.stat().st_mode & 0o777 == 0o600
    assert os.umask(before) == before


@pytest.mark.parametrize("name", ["x" * 200, "missing/admin.sock"])
def test_an_admin_socket_that_cannot_be_made_is_told_with_the_reason(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnavailableError, match=r"cannot listen on .*: (AF_UNIX path|No such file)"):
        listen.bind_admin(tmp_path / name)
