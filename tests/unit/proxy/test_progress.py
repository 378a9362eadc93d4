"""What comes from an engine, told by what was read on its connections."""

from __future__ import annotations

from memoria.proxy.exchange.context import Progress
from memoria.proxy.upstream import Pool, Upstream
from memoria.vllm.facts import UnixAddress


class Client:
    """A connection and the request on it, which waits for `engine`, or not."""

    def __init__(self, engine: str = "engine") -> None:
        self.engine, self.takes = engine, True
        self.upstream = Upstream(UnixAddress("/nowhere"), Pool())
        self.exchange = self

    def on_tick(self, now: float) -> None: ...

    def cut(self, engine: str) -> None: ...

    def awaited_from(self, engine: str) -> Upstream | None:
        return self.upstream if self.takes and engine == self.engine else None


class Proxy:
    def __init__(self, *clients: Client) -> None:
        self.clients, self.answered = [*clients], 0
        self.progress = Progress(self.clients, lambda _: self.answered)


def test_only_those_count_that_wait_for_the_engine() -> None:
    slow = Client()
    slow.takes = False
    proxy = Proxy(Client(), Client(), slow, Client("other"))
    assert proxy.progress.of("engine") == (2, 0)


def test_every_read_is_heard_and_silence_is_not() -> None:
    client = Client()
    proxy = Proxy(client)
    heard = [proxy.progress.of("engine")[1]]
    for reads in (1, 2, 2, 2, 3):
        client.upstream.reads = reads
        heard.append(proxy.progress.of("engine")[1])
    assert heard == [0, 1, 2, 2, 2, 3]


def test_an_answer_that_came_and_ended_between_two_looks_is_heard() -> None:
    proxy = Proxy(Client())
    before = proxy.progress.of("engine")[1]
    proxy.answered += 1
    assert proxy.progress.of("engine")[1] == before + 1


def test_clients_that_give_up_and_come_back_are_not_heard() -> None:
    proxy = Proxy(Client())
    for _ in range(5):
        proxy.clients[:] = [Client()]
        assert proxy.progress.of("engine")[1] == 0
