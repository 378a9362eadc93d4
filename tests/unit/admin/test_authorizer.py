"""Who may look and who may act over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memoria.admin.api.authorizer import ACCESS, Authorizer
from memoria.config.model import Address
from memoria.proxy.access.keys import KeyRing
from memoria.proxy.errors import Rejection
from tests.unit.commands import CONFIG

API, ADMIN = b"k" * 32, b"a" * 32
LOGS, STATUS, STOP = ("GET", "/logs/engine"), ("GET", "/status"), ("POST", "/engines/engine/stop")


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> tuple[KeyRing, KeyRing]:
    folder: Path = tmp_path_factory.mktemp("keys")
    made = []
    for name, key in (("chat", API), ("ana", ADMIN)):
        (folder / name).write_text(f"{name}: {key.decode()}\n", encoding="utf-8")
        (folder / name).chmod(0o600)
        made.append(KeyRing(folder / name))
    return made[0], made[1]


def entered(door: Authorizer, what: tuple[str, str], key: bytes | None = None) -> str | tuple[int, str]:
    """Who asks, or the refusal's status and code."""
    method, path = what
    headers = [] if key is None else [(b"authorization", b"Bearer " + key)]
    try:
        return door.enter({"method": method, "headers": headers}, path)
    except Rejection as rejection:
        return rejection.answer.status, rejection.answer.code


def test_on_this_machine_without_keys_anybody_may_look_and_nobody_may_act() -> None:
    door = Authorizer(CONFIG, None, None)
    assert entered(door, STATUS) == entered(door, LOGS) == "over HTTP"
    assert entered(door, STOP) == (403, "admin_keys_not_set")


def test_an_admins_key_may_do_everything(rings: tuple[KeyRing, KeyRing]) -> None:
    door = Authorizer(CONFIG, *rings)
    assert {entered(door, what, ADMIN) for what in (STATUS, LOGS, STOP)} == {"with ana's key"}


def test_without_a_key_that_is_known_there_is_no_entry(rings: tuple[KeyRing, KeyRing]) -> None:
    door = Authorizer(CONFIG, *rings)
    for what in (STATUS, LOGS, STOP):
        assert entered(door, what) == entered(door, what, b"x" * 32) == (401, "invalid_api_key")


def test_who_may_use_the_engines_may_see_how_they_do_and_no_more(rings: tuple[KeyRing, KeyRing]) -> None:
    door = Authorizer(CONFIG, *rings)
    assert entered(door, STATUS, API) == "over HTTP"
    assert entered(door, LOGS, API) == entered(door, STOP, API) == (403, "not_an_admin")


def test_an_open_network_sees_states_but_no_logs(rings: tuple[KeyRing, KeyRing]) -> None:
    config = replace(CONFIG, listen=Address("0.0.0.0", 8200))
    assert entered(Authorizer(config, None, None), STATUS) == "over HTTP"
    assert entered(Authorizer(config, None, None), LOGS) == (403, "admin_keys_not_set")
    assert entered(Authorizer(config, None, rings[1]), LOGS) == (401, "invalid_api_key")


def test_a_refusal_repeats_no_key(rings: tuple[KeyRing, KeyRing]) -> None:
    with pytest.raises(Rejection) as refused:
        Authorizer(CONFIG, *rings).enter(
            {"method": "POST", "headers": [(b"x-api-key", b"secret" * 4)]}, STOP[1]
        )
    assert "secret" not in refused.value.answer.message


def test_anybody_is_told_what_they_may_do_in_the_refusals_own_words(rings: tuple[KeyRing, KeyRing]) -> None:
    def told(door: Authorizer, key: bytes | None = None) -> tuple[object, ...]:
        headers = [] if key is None else [(b"authorization", b"Bearer " + key)]
        assert entered(door, ("GET", ACCESS), key)
        rights = door.rights({"method": "GET", "headers": headers})
        return rights.key, *(
            right.code or right.allowed for right in (rights.look, rights.logs, rights.steer)
        )

    door, unknown, no_admins = Authorizer(CONFIG, *rings), "invalid_api_key", "admin_keys_not_set"
    assert told(door) == told(door, b"x" * 32) == (None, unknown, unknown, unknown)
    assert told(door, API) == ("chat", True, "not_an_admin", "not_an_admin")
    assert told(door, ADMIN) == ("ana", True, True, True)
    assert told(Authorizer(CONFIG, None, None)) == (None, True, True, no_admins)
    assert told(Authorizer(CONFIG, rings[0], None), API) == ("chat", True, no_admins, no_admins)
