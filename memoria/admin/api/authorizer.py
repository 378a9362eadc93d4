"""Who may look and who may act over HTTP. The admin socket needs no such door: only its owner may open it.

Host and Origin were looked at before (`memoria/proxy/access/rules.py`), as for every request.

    the engines' state and events      whoever may use the engines
    logs, recent requests              the same, if that is anybody on this machine; else an admin's key
    start, stop, restart               an admin's key
    what of these the asker may do     anybody: it tells no more than trying would
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from starlette.types import Scope

from memoria.config.model import Config
from memoria.proxy.access.keys import KeyRing
from memoria.proxy.access.rules import find_key
from memoria.proxy.errors import Answer, Rejection

ACCESS = "/access"
OPEN = ("/status", "/events", "/openapi.json")


@dataclass(frozen=True, slots=True)
class Right:
    """`code` and `why` say what is in the way, as the refusal would; None where nothing is."""

    allowed: bool
    code: str | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Rights:
    """Of one asker. `key`: the name of the key that was sent, None for none, or one that is not known."""

    key: str | None
    look: Right
    logs: Right
    steer: Right

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


OWNER = Rights(None, Right(allowed=True), Right(allowed=True), Right(allowed=True))


class Authorizer:
    """`keys` and `admin_keys` are None where the configuration names no file."""

    def __init__(self, config: Config, keys: KeyRing | None, admin_keys: KeyRing | None) -> None:
        self._keys, self._admin_keys = keys, admin_keys
        self._anybody_here = config.listen.is_loopback and keys is None

    def rights(self, scope: Scope) -> Rights:
        """Found by trying."""

        def right(method: str, path: str) -> Right:
            try:
                self.enter({**scope, "method": method}, path)
            except Rejection as refused:
                return Right(allowed=False, code=refused.answer.code, why=refused.answer.message)
            return Right(allowed=True)

        head = dict(scope["headers"])
        rings = [ring for ring in (self._admin_keys, self._keys) if ring is not None]
        key = next((name for ring in rings if (name := find_key(head, ring)) is not None), None)
        return Rights(key, right("GET", "/status"), right("GET", "/requests"), right("POST", "/reload"))

    def enter(self, scope: Scope, path: str) -> str:
        """Who asks, in words for the journal. Raises `Rejection`: 401 without a key that is known, 403 with
        one that is not enough."""
        head = dict(scope["headers"])
        acts = scope["method"] not in ("GET", "HEAD")
        if self._admin_keys is not None and (name := find_key(head, self._admin_keys)) is not None:
            return f"with {name}'s key"
        name = None if self._keys is None else find_key(head, self._keys)
        if path == ACCESS:
            return "over HTTP"
        if not acts and (self._anybody_here or (path in OPEN and (self._keys is None or name is not None))):
            return "over HTTP"
        if self._admin_keys is None and (acts or self._keys is None or name is not None):
            raise Rejection(_no_admin_keys(acts=acts))
        if name is not None:
            raise Rejection(_not_an_admin(name))
        raise Rejection(_unknown(given=not head.keys().isdisjoint((b"authorization", b"x-api-key"))))


def _no_admin_keys(*, acts: bool) -> Answer:
    what = "Engines are steered" if acts else "Logs and requests are shown"
    message = (
        f"{what} over HTTP with an admin's key alone, and there are none: name a file of them with "
        "`admin_keys`, or use the `memoria` command"
    )
    return Answer(403, message, "admin_keys_not_set")


def _not_an_admin(name: str) -> Answer:
    message = f"The API key `{name}` is not an admin's: this needs one of `admin_keys`"
    return Answer(403, message, "not_an_admin")


def _unknown(*, given: bool) -> Answer:
    what = "The key is not known here" if given else "A key is needed"
    message = f"{what}: send it as `Authorization: Bearer KEY`, or as `x-api-key: KEY`"
    return Answer(
        401, message, "invalid_api_key", headers=((b"www-authenticate", b'Bearer realm="memoria"'),)
    )
