"""Authorization of the admin API over HTTP."""

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


def entry(authorizer: Authorizer, what: tuple[str, str], key: bytes | None = None) -> str | tuple[int, str]:
    """The sender, or the refusal's status and code."""
    method, path = what
    headers = [] if key is None else [(b"authorization", b"Bearer " + key)]
    try:
        return authorizer.authorize({"method": method, "headers": headers}, path)
    except Rejection as rejection:
        return rejection.answer.status, rejection.answer.code


def test_on_this_machine_without_keys_all_may_look_and_none_may_act() -> None:
    authorizer = Authorizer(CONFIG, None, None)
    assert entry(authorizer, STATUS) == entry(authorizer, LOGS) == "over HTTP"
    assert entry(authorizer, STOP) == (403, "admin_keys_not_set")


def test_an_admins_key_may_do_everything(rings: tuple[KeyRing, KeyRing]) -> None:
    authorizer = Authorizer(CONFIG, *rings)
    assert {entry(authorizer, what, ADMIN) for what in (STATUS, LOGS, STOP)} == {"with ana's key"}


def test_without_a_key_that_is_known_there_is_no_entry(rings: tuple[KeyRing, KeyRing]) -> None:
    authorizer = Authorizer(CONFIG, *rings)
    for what in (STATUS, LOGS, STOP):
        assert entry(authorizer, what) == entry(authorizer, what, b"x" * 32) == (401, "invalid_api_key")


def test_who_may_use_the_engines_may_see_how_they_do_and_no_more(rings: tuple[KeyRing, KeyRing]) -> None:
    authorizer = Authorizer(CONFIG, *rings)
    assert entry(authorizer, STATUS, API) == "over HTTP"
    assert entry(authorizer, LOGS, API) == entry(authorizer, STOP, API) == (403, "not_an_admin")


def test_an_open_network_sees_states_but_no_logs(rings: tuple[KeyRing, KeyRing]) -> None:
    config = replace(CONFIG, listen=Address("0.0.0.0", 8200))
    assert entry(Authorizer(config, None, None), STATUS) == "over HTTP"
    assert entry(Authorizer(config, None, None), LOGS) == (403, "admin_keys_not_set")
    assert entry(Authorizer(config, None, rings[1]), LOGS) == (401, "invalid_api_key")


def test_a_refusal_repeats_no_key(rings: tuple[KeyRing, KeyRing]) -> None:
    with pytest.raises(Rejection) as refused:
        Authorizer(CONFIG, *rings).authorize(
            {"method": "POST", "headers": [(b"x-api-key", b"secret" * 4)]}, STOP[1]
        )
    assert "secret" not in refused.value.answer.message


def test_rights_are_given_in_the_refusals_own_words(rings: tuple[KeyRing, KeyRing]) -> None:
    def rights_of(authorizer: Authorizer, key: bytes | None = None) -> tuple[object, ...]:
        headers = [] if key is None else [(b"authorization", b"Bearer " + key)]
        assert entry(authorizer, ("GET", ACCESS), key)
        rights = authorizer.rights({"method": "GET", "headers": headers})
        return rights.key, *(
            right.code or right.allowed for right in (rights.look, rights.logs, rights.control)
        )

    authorizer, unknown, no_admins = Authorizer(CONFIG, *rings), "invalid_api_key", "admin_keys_not_set"
    assert rights_of(authorizer) == rights_of(authorizer, b"x" * 32) == (None, unknown, unknown, unknown)
    assert rights_of(authorizer, API) == ("chat", True, "not_an_admin", "not_an_admin")
    assert rights_of(authorizer, ADMIN) == ("ana", True, True, True)
    assert rights_of(Authorizer(CONFIG, None, None)) == (None, True, True, no_admins)
    assert rights_of(Authorizer(CONFIG, rings[0], None), API) == ("chat", True, no_admins, no_admins)
