"""Authorization of the admin API over HTTP. The admin socket needs none: only its owner can open it.

Host and Origin are checked before, as for every request (memoria/proxy/access/rules.py).

    state and events of the engines     every client that may use the engines
    logs, recent requests               the same where that is all of this machine; else an admin key
    start, stop, restart, reload        an admin key
    the client's own rights             every client: they reveal no more than trying would
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from memoria.config.model import Config
from memoria.proxy.access.keys import KeyRing
from memoria.proxy.access.rules import find_key, sends_key
from memoria.proxy.errors import Answer, Rejection, invalid_api_key

ACCESS = "/access"
OPEN = ("/status", "/events", "/openapi.json")


@dataclass(frozen=True, slots=True)
class Right:
    allowed: bool
    code: str | None = None
    """The refusal's code; null where it is allowed."""
    why: str | None = None
    """The refusal's message; null where it is allowed."""


@dataclass(frozen=True, slots=True)
class Rights:
    """Rights of one client."""

    key: str | None
    """The name of its key; null without one, and for one that is not known."""
    look: Right
    """Status and events."""
    logs: Right
    """Logs and recent requests."""
    control: Right
    """Start, stop, restart, reload."""


OWNER = Rights(None, Right(allowed=True), Right(allowed=True), Right(allowed=True))


class Authorizer:
    """`keys` and `admin_keys` are None where the configuration names no file."""

    def __init__(self, config: Config, keys: KeyRing | None, admin_keys: KeyRing | None) -> None:
        self._keys, self._admin_keys = keys, admin_keys
        self._open_locally = config.listen.is_loopback and keys is None

    def rights(self, scope: Scope) -> Rights:
        """The rights of a request's sender, by trying each."""

        def right(method: str, path: str) -> Right:
            try:
                self.authorize({**scope, "method": method}, path)
            except Rejection as refused:
                return Right(allowed=False, code=refused.answer.code, why=refused.answer.message)
            return Right(allowed=True)

        head = dict(scope["headers"])
        rings = [ring for ring in (self._admin_keys, self._keys) if ring is not None]
        key = next((name for ring in rings if (name := find_key(head, ring)) is not None), None)
        return Rights(key, right("GET", "/status"), right("GET", "/requests"), right("POST", "/reload"))

    def authorize(self, scope: Scope, path: str) -> str:
        """The sender, in words for the journal. Raises `Rejection`: 401 without a known key, 403 where the
        key does not suffice."""
        head = dict(scope["headers"])
        acts = scope["method"] not in ("GET", "HEAD")
        if self._admin_keys is not None and (name := find_key(head, self._admin_keys)) is not None:
            return f"with {name}'s key"
        name = None if self._keys is None else find_key(head, self._keys)
        if path == ACCESS:
            return "over HTTP"
        if not acts and (self._open_locally or (path in OPEN and (self._keys is None or name is not None))):
            return "over HTTP"
        if self._admin_keys is None and (acts or self._keys is None or name is not None):
            raise Rejection(_no_admin_keys(acts=acts))
        if name is not None:
            raise Rejection(_not_an_admin(name))
        raise Rejection(invalid_api_key(given=sends_key(head)))


def _no_admin_keys(*, acts: bool) -> Answer:
    what = "Controlling engines" if acts else "Reading logs and requests"
    message = (
        f"{what} over HTTP needs an admin key, and none is configured (set `admin_keys` to a file of keys, "
        "or use the `memoria` command)"
    )
    return Answer(403, message, "admin_keys_not_set")


def _not_an_admin(name: str) -> Answer:
    message = f"The API key `{name}` is not an admin key (this needs one of `admin_keys`)"
    return Answer(403, message, "not_an_admin")
