"""A queue in which clients take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Each client's items leave in their order, and one of every other waiting client's leaves between two of
    them: who asks for much waits for itself, not the others for it. Every item is in here once."""

    def __init__(self) -> None:
        self._clients: dict[Hashable, deque[Item]] = {}  # whose turn it is first; no queue is empty
        self.length = 0  # of all queues together

    def __len__(self) -> int:
        return self.length

    def add(self, client: Hashable, item: Item) -> None:
        self._clients.setdefault(client, deque()).append(item)
        self.length += 1

    def take(self) -> Item:
        """Raises `IndexError` when nothing waits."""
        if not self.length:
            raise IndexError("nobody waits")
        client = next(iter(self._clients))
        queue = self._clients.pop(client)
        item = queue.popleft()
        self.length -= 1
        if queue:
            self._clients[client] = queue  # behind all others
        return item

    def remove(self, client: Hashable, item: Item) -> None:
        """Raises `KeyError` or `ValueError` for what is not in here."""
        queue = self._clients[client]
        queue.remove(item)
        self.length -= 1
        if not queue:
            del self._clients[client]
