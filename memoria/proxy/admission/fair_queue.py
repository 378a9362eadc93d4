"""A queue that is fair to its clients."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Round robin over clients, first in first out within each: a client that sends much delays itself, not
    the others. An item may be queued once."""

    def __init__(self) -> None:
        self._clients: dict[Hashable, deque[Item]] = {}  # the next to be served first; no queue is empty
        self.length = 0  # items of all clients

    def __len__(self) -> int:
        return self.length

    def add(self, client: Hashable, item: Item) -> None:
        self._clients.setdefault(client, deque()).append(item)
        self.length += 1

    def take(self) -> Item:
        """Removes the next item. Raises `IndexError` when the queue is empty."""
        if not self.length:
            raise IndexError("the queue is empty")
        client = next(iter(self._clients))
        queue = self._clients.pop(client)
        item = queue.popleft()
        self.length -= 1
        if queue:
            self._clients[client] = queue  # behind all others
        return item

    def remove(self, client: Hashable, item: Item) -> None:
        """Raises `KeyError` or `ValueError` for an item that is not queued."""
        queue = self._clients[client]
        queue.remove(item)
        self.length -= 1
        if not queue:
            del self._clients[client]
