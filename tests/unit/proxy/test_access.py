from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memoria.config.model import Access, Address, TlsFiles
from memoria.proxy.access.keys import KeyRing, Keys
from memoria.proxy.access.rules import AccessRules, Grant, access_rules, decide
from memoria.proxy.errors import Answer
from memoria.proxy.http.messages import Header
from tests.unit.commands import CONFIG

KEY = "k" * 32
HOST = (b"host", b"127.0.0.1:8200")
JSON = (b"content-type", b"application/json")
FORM = (b"content-type", b"multipart/form-data; boundary=x")
APP = b"https://app.example.org"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    path: Path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"chat: {KEY}\nbatch: {'b' * 32}\n", encoding="utf-8")
    path.chmod(0o600)
    return KeyRing(path)


def rules(listen: str = "127.0.0.1", **access: tuple[str, ...]) -> AccessRules:
    config = replace(CONFIG, listen=Address(listen, 8200), access=Access(**access))  # type: ignore[arg-type]
    return access_rules(config, Keys(), hostname="Box")


def ask(
    *headers: Header, by: AccessRules, method: str = "POST", path: bytes = b"/v1/chat/completions"
) -> Grant | Answer:
    return decide(method, path, headers, by)


def status(*headers: Header, by: AccessRules, method: str = "POST", path: bytes = b"/v1/embeddings") -> int:
    decision = decide(method, path, headers, by)
    return decision.status if isinstance(decision, Answer) else 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8200", "127.0.0.1", "127.0.0.1:8100", "[::1]", "[::1]:80"]
)
def test_this_machine_may_be_called_by_its_own_names(host: str) -> None:
    assert status((b"host", host.encode()), by=rules()) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost:x",
        "localhost.",
        "10.0.0.1",
        "0.0.0.0:8200",
        "box",
        "",
        "::1",
    ],
)
def test_on_a_loopback_address_no_other_host_is_answered(host: str) -> None:
    decision = ask((b"host", host.encode()), by=rules())
    assert isinstance(decision, Answer)
    assert (decision.status, decision.code) == (421, "host_not_allowed")


@pytest.mark.parametrize("host", ["10.0.0.1:8200", "[fe80::1]:8200", "box:8200", "localhost"])
def test_on_a_network_addresses_and_the_hosts_own_name_are_answered(host: str) -> None:
    assert status((b"host", host.encode()), by=rules("0.0.0.0")) == 200


@pytest.mark.parametrize("host", ["evil.example", "10.0.0.1.evil.example", "[::1].evil.example", "1.2.3"])
def test_on_a_network_no_other_name_is_answered(host: str) -> None:
    assert status((b"host", host.encode()), by=rules("0.0.0.0")) == 421


def test_further_names_are_those_that_the_file_allows() -> None:
    assert status((b"host", b"box.example.org:443"), by=rules(allowed_hosts=("box.example.org",))) == 200
    assert status((b"host", b"other.example.org"), by=rules(allowed_hosts=("box.example.org",))) == 421
    assert status((b"host", b"other.example.org"), by=rules(allowed_hosts=("*",))) == 200


def test_the_bound_name_counts() -> None:
    assert status((b"host", b"gpu-box:8200"), by=rules("gpu-box")) == 200
    assert status((b"host", b"[fd00::1]:8200"), by=rules("fd00::1")) == 200


CONTAINER = (b"host", b"host.docker.internal:8200")
BEARER = (b"authorization", b"Bearer " + KEY.encode())


@pytest.mark.parametrize("host", [b"host.docker.internal", b"box.local:8200", b"gpu.tail1234.ts.net", b"box"])
def test_a_program_with_a_key_may_use_any_name(keys: KeyRing, host: bytes) -> None:
    by = replace(rules(), keys=keys)
    assert status((b"host", host), BEARER, by=by) == 200
    assert status((b"host", host), BEARER, by=replace(rules(), admin_keys=keys), path=b"/admin/reload") == 200


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((CONTAINER,), id="no key"),
        pytest.param((CONTAINER, (b"x-api-key", b"k" * 31)), id="a wrong key"),
        pytest.param(
            (CONTAINER, BEARER, JSON, (b"origin", b"http://host.docker.internal:8200")), id="a page"
        ),
        pytest.param((CONTAINER, BEARER, JSON, (b"sec-fetch-site", b"same-origin")), id="a page's image"),
    ],
)
def test_no_one_else_may_and_no_page_even_with_a_key(keys: KeyRing, headers: tuple[Header, ...]) -> None:
    """A page whose name was rebound to this machine (DNS rebinding) has its own name as Host and Origin."""
    assert status(*headers, by=replace(rules(), keys=keys)) == 421


def test_without_keys_none_is_valid() -> None:
    assert status(CONTAINER, BEARER, by=rules()) == 421


def test_a_request_without_a_host_is_no_browsers() -> None:
    assert ask(by=rules()) == Grant()


@pytest.mark.parametrize("name", [b"host", b"origin", b"authorization", b"x-api-key"])
def test_a_header_that_decides_may_come_once(name: bytes) -> None:
    assert status((name, b"localhost"), (name, b"localhost"), by=rules()) == 400


@pytest.mark.parametrize(
    "origin",
    [b"https://evil.example", b"null", b"", b"http://127.0.0.1:3000", b"http://localhost:8200", b"file://"],
)
def test_a_foreign_page_may_not_ask(origin: bytes) -> None:
    decision = ask(HOST, JSON, (b"origin", origin), by=rules(origins=(APP.decode(),)))
    assert isinstance(decision, Answer)
    assert (decision.status, decision.code) == (403, "origin_not_allowed")
    assert status(HOST, (b"origin", origin), by=rules(), method="GET") == 403


@pytest.mark.parametrize("scheme", [b"http", b"HTTPS"])
def test_memorias_own_page_may_ask(scheme: bytes) -> None:
    assert ask(HOST, JSON, (b"origin", scheme + b"://127.0.0.1:8200"), by=rules()) == Grant()


def test_with_tls_a_page_that_came_unencrypted_is_not_memorias_own() -> None:
    config = replace(CONFIG, tls_files=TlsFiles(Path("/cert.pem")))
    secure = access_rules(config, Keys(), hostname="Box")
    assert status(HOST, JSON, (b"origin", b"https://127.0.0.1:8200"), by=secure) == 200
    assert status(HOST, JSON, (b"origin", b"http://127.0.0.1:8200"), by=secure) == 403


def test_a_page_that_the_file_names_may_ask_and_may_read_the_answer() -> None:
    decision = ask(HOST, JSON, (b"origin", APP), by=rules(origins=(APP.decode(),)))
    assert isinstance(decision, Grant)
    answered = dict(decision.headers)
    assert answered[b"access-control-allow-origin"] == APP
    assert answered[b"vary"] == b"origin"


def test_any_page_may_ask_where_the_file_says_so() -> None:
    decision = ask(HOST, JSON, (b"origin", b"null"), by=rules(origins=("*",)))
    assert isinstance(decision, Grant)
    assert (b"access-control-allow-origin", b"*") in decision.headers


def preflight(origin: bytes, by: AccessRules) -> Grant | Answer:
    wanted = (b"access-control-request-method", b"POST")
    names = (b"access-control-request-headers", b"authorization,content-type,x-stainless-os")
    return ask(HOST, (b"origin", origin), wanted, names, by=by, method="OPTIONS")


def test_a_browser_that_asks_first_is_told_what_is_allowed_without_a_key(keys: KeyRing) -> None:
    decision = preflight(APP, replace(rules(origins=(APP.decode(),)), keys=keys))
    assert isinstance(decision, Answer)
    assert decision.status == 204
    allowed = dict(decision.headers)
    assert allowed[b"access-control-allow-origin"] == APP
    assert allowed[b"access-control-allow-methods"] == b"GET, POST"
    assert allowed[b"access-control-allow-headers"] == b"authorization,content-type,x-stainless-os"


def test_without_cors_nobody_is_told_anything() -> None:
    decision = preflight(APP, rules())
    assert isinstance(decision, Answer)
    assert (decision.status, decision.headers) == (403, ())


def test_header_names_that_are_none_are_not_repeated() -> None:
    head = (HOST, (b"origin", APP), (b"access-control-request-method", b"POST"))
    decision = ask(
        *head,
        (b"access-control-request-headers", b"a\r\nset-cookie: x"),
        by=rules(origins=("*",)),
        method="OPTIONS",
    )
    assert isinstance(decision, Answer)
    assert decision.status == 204
    assert b"access-control-allow-headers" not in dict(decision.headers)


@pytest.mark.parametrize(
    ("kind", "path", "expected"),
    [
        (b"application/json", b"/v1/embeddings", 200),
        (b"Application/JSON; charset=utf-8", b"/v1/embeddings", 200),
        (b"application/problem+json", b"/v1/embeddings", 200),
        (b"text/plain", b"/v1/embeddings", 415),
        (b"application/x-www-form-urlencoded", b"/v1/embeddings", 415),
        (b"text/plain; application/json", b"/v1/embeddings", 415),
        (b"multipart/form-data; boundary=x", b"/v1/embeddings", 415),
        (b"multipart/form-data; boundary=x", b"/v1/audio/transcriptions", 200),
        (b"", b"/v1/embeddings", 415),
    ],
)
@pytest.mark.parametrize("sign", [(b"origin", b"http://127.0.0.1:8200"), (b"sec-fetch-site", b"same-origin")])
def test_a_page_sends_json_or_a_form_where_one_is_read(
    kind: bytes, path: bytes, expected: int, sign: Header
) -> None:
    assert status(HOST, sign, (b"content-type", kind), by=rules(), path=path) == expected


@pytest.mark.parametrize("framing", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")])
def test_a_page_says_what_it_sends(framing: Header) -> None:
    origin = (b"origin", b"http://127.0.0.1:8200")
    assert status(HOST, origin, framing, by=rules()) == 415
    assert status(HOST, origin, (b"content-length", b"0"), by=rules()) == 200


def test_programs_may_send_what_they_like() -> None:
    assert status(HOST, (b"content-type", b"text/plain"), by=rules()) == 200


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer " + KEY.encode()),
        (b"authorization", b"bearer  " + KEY.encode() + b" "),
        (b"x-api-key", KEY.encode()),
    ],
)
def test_a_key_says_who_asks(keys: KeyRing, header: Header) -> None:
    assert ask(HOST, header, by=replace(rules(), keys=keys)) == Grant("chat")


def test_either_header_will_do_where_both_are_sent(keys: KeyRing) -> None:
    by = replace(rules(), keys=keys)
    assert ask(HOST, (b"authorization", b"Bearer EMPTY"), (b"x-api-key", KEY.encode()), by=by) == Grant(
        "chat"
    )


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"authorization", b""),),
        ((b"authorization", b"Bearer"),),
        ((b"authorization", b"Bearer "),),
        ((b"authorization", KEY.encode()),),
        ((b"authorization", b"Basic " + KEY.encode()),),
        ((b"authorization", b"Bearer " + KEY.encode()[:-1]),),
        ((b"authorization", b"Bearer " + KEY.encode() + b"\xff"),),
        ((b"x-api-key", b"Bearer " + KEY.encode()),),
        ((b"x_api_key", KEY.encode()),),
    ],
)
def test_without_a_key_nobody_is_let_in(keys: KeyRing, headers: tuple[Header, ...]) -> None:
    decision = ask(HOST, *headers, by=replace(rules(), keys=keys))
    assert isinstance(decision, Answer)
    assert (decision.status, decision.code) == (401, "invalid_api_key")
    assert dict(decision.headers)[b"www-authenticate"].startswith(b"Bearer")
    assert KEY not in decision.message


@pytest.mark.parametrize("path", [b"/health", b"/livez", b"/readyz"])
def test_health_needs_no_key_but_the_right_host(keys: KeyRing, path: bytes) -> None:
    by = replace(rules(), keys=keys)
    assert status(HOST, by=by, method="GET", path=path) == 200
    assert status((b"host", b"evil.example"), by=by, method="GET", path=path) == 421


@pytest.mark.parametrize(
    "path", [b"/v1/models", b"/metrics", b"/score", b"/health/", b"/%68ealth", b"//health"]
)
def test_everything_else_needs_one(keys: KeyRing, path: bytes) -> None:
    assert status(HOST, by=replace(rules(), keys=keys), method="GET", path=path) == 401


def test_a_page_without_a_key_may_read_why_it_was_refused(keys: KeyRing) -> None:
    decision = ask(HOST, JSON, (b"origin", APP), by=replace(rules(origins=(APP.decode(),)), keys=keys))
    assert isinstance(decision, Answer)
    assert (b"access-control-allow-origin", APP) in decision.headers


NAMES = st.sampled_from(
    [
        b"host",
        b"origin",
        b"authorization",
        b"x-api-key",
        b"sec-fetch-site",
        b"content-type",
        b"content-length",
    ]
)
HEADERS = st.lists(st.tuples(NAMES | st.binary(max_size=12), st.binary(max_size=60)), max_size=8)


@given(
    method=st.sampled_from(["GET", "POST", "OPTIONS", "HEAD", "\xff"]),
    path=st.binary(max_size=40) | st.sampled_from([b"/v1/audio/transcriptions", b"/health"]),
    headers=HEADERS,
    wide=st.booleans(),
)
@example("OPTIONS", b"/", [(b"origin", b"\xff"), (b"access-control-request-method", b"\x00")], True)
def test_hostile_bytes_are_decided_on_like_any_others(
    keys: KeyRing, method: str, path: bytes, headers: list[Header], wide: bool
) -> None:
    by = replace(rules("0.0.0.0" if wide else "127.0.0.1"), keys=keys)
    decision = decide(method, path, headers, by)
    if isinstance(decision, Answer):
        assert 400 <= decision.status < 500
        assert decision.body
    else:
        assert decision.key is None  # nobody guesses a key
        assert path in {b"/health", b"/livez", b"/readyz", b"/"} or path.startswith((b"/admin/", b"/page/"))


@pytest.mark.parametrize("path", [b"/admin/status", b"/admin/engines/a/stop", b"/page/page.js", b"/"])
def test_memorias_own_part_asks_for_its_keys_itself(keys: KeyRing, path: bytes) -> None:
    assert status(HOST, by=replace(rules(), keys=keys), method="GET", path=path) == 200


@pytest.mark.parametrize(
    "path", [b"/admin", b"/administer", b"/pages", b"/x/admin/status", b"/%61dmin/status"]
)
def test_what_only_looks_like_memorias_own_needs_a_key(keys: KeyRing, path: bytes) -> None:
    assert status(HOST, by=replace(rules(), keys=keys), method="GET", path=path) == 401


def test_no_other_sites_page_may_control_engines_whatever_cors_allows() -> None:
    anybody = rules(origins=("*",))
    assert status(HOST, (b"origin", APP), by=anybody, method="GET", path=b"/v1/models") == 200
    assert status(HOST, (b"origin", APP), by=anybody, method="GET", path=b"/admin/status") == 403
    own = (b"origin", b"http://127.0.0.1:8200")
    assert status(HOST, own, by=anybody, method="GET", path=b"/admin/status") == 200


PICTURE = ((b"sec-fetch-mode", b"no-cors"), (b"sec-fetch-dest", b"image"))
LINK = ((b"sec-fetch-mode", b"navigate"), (b"sec-fetch-dest", b"document"))
FRAME = ((b"sec-fetch-mode", b"navigate"), (b"sec-fetch-dest", b"iframe"))


def fetched(site: bytes, how: tuple[Header, ...], path: bytes, *origins: str, method: str = "GET") -> int:
    """A GET of a browser, which sends no Origin with it."""
    by = rules(origins=origins)
    return status(HOST, (b"sec-fetch-site", site), *how, by=by, method=method, path=path)


@pytest.mark.parametrize("site", [b"cross-site", b"same-site", b"", b"some-new-word"])
@pytest.mark.parametrize("how", [PICTURE, FRAME, ()])
@pytest.mark.parametrize(
    "path", [b"/admin/events", b"/admin/status", b"/v1/models", b"/metrics", b"/", b"/livez"]
)
def test_another_sites_page_may_not_fetch_without_an_origin_either(
    site: bytes, how: tuple[Header, ...], path: bytes
) -> None:
    assert fetched(site, how, path) == 403
    assert fetched(site, how, path, APP.decode()) == 403


@pytest.mark.parametrize("site", [b"cross-site", b"same-site"])
def test_a_person_may_follow_a_link_from_another_site_but_not_into_the_api(site: bytes) -> None:
    assert fetched(site, LINK, b"/") == 200
    assert fetched(site, LINK, b"/metrics") == 200
    assert fetched(site, LINK, b"/admin/events") == 403
    assert fetched(site, LINK, b"/", method="POST") == 403


@pytest.mark.parametrize("site", [b"same-origin", b"none"])
def test_memorias_own_page_and_the_address_bar_may_fetch(site: bytes) -> None:
    for how in (PICTURE, LINK, ()):
        for path in (b"/", b"/admin/events", b"/page/main.js", b"/v1/models"):
            assert fetched(site, how, path) == 200


def test_where_any_page_may_ask_it_may_fetch_what_is_not_memorias_own() -> None:
    assert fetched(b"cross-site", PICTURE, b"/v1/models", "*") == 200
    assert fetched(b"cross-site", PICTURE, b"/admin/events", "*") == 403


def test_a_page_that_the_file_names_comes_with_its_origin() -> None:
    site = (b"sec-fetch-site", b"cross-site")
    assert status(HOST, JSON, site, (b"origin", APP), by=rules(origins=(APP.decode(),))) == 200


def test_an_admins_key_is_good_for_the_engines(keys: KeyRing, tmp_path: Path) -> None:
    (tmp_path / "admins").write_text(f"ana: {'a' * 32}\n", encoding="utf-8")
    (tmp_path / "admins").chmod(0o600)
    both = replace(rules(), keys=keys, admin_keys=KeyRing(tmp_path / "admins"))
    granted = decide("GET", b"/v1/models", [HOST, (b"x-api-key", b"a" * 32)], both)
    assert isinstance(granted, Grant)
    assert granted.key == "ana"
