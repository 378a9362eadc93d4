"""Who may ask, what waits, and what is changed on the way: the keys of the front door."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoria.config.explain import explain
from memoria.config.model import Access, Address, Filters, Guard, Hold, TlsFiles
from tests.unit.config_files import ENGINE, NO_VARIABLES, ConfigFolder, folder

__all__ = ["folder"]

ENGINES = f"engines: {{a: {{{ENGINE}}}, b: {{{ENGINE}, runner: pooling}}}}\n"


def test_by_default_this_machine_alone_may_ask_and_needs_no_key(folder: ConfigFolder) -> None:
    config = folder.load(ENGINES)
    assert config.access == Access()
    assert config.hold == Hold(seconds=30.0, requests=256, bytes=64 << 20)
    assert config.guard is None
    assert config.engine("a").filters == Filters()
    assert config.warnings == ()


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:8200", "[::]:8200", "192.168.1.5:8200", "gpu-box:8200", "127.evil.example:1"]
)
def test_a_wide_bind_without_keys_is_refused_with_its_line(folder: ConfigFolder, listen: str) -> None:
    problem = folder.problem(f'\nlisten: "{listen}"\n{ENGINES}')
    assert problem.what == f"{listen} can be reached from other machines, and there are no API keys"
    assert problem.where == ("memoria.yaml:2:1  listen",)
    assert "open_to_network: true" in (problem.hint or "")


@pytest.mark.parametrize("more", ["keys: ./keys", "open_to_network: true"])
def test_a_wide_bind_is_taken_with_keys_or_when_the_file_says_so(folder: ConfigFolder, more: str) -> None:
    assert folder.load(f"listen: 0.0.0.0:8200\n{more}\n{ENGINES}").listen == Address("0.0.0.0", 8200)


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.0.0.2:1", "[::1]:1", "localhost:1", "LOCALHOST:1"])
def test_this_machine_needs_no_words(folder: ConfigFolder, listen: str) -> None:
    assert folder.load(f"listen: '{listen}'\n{ENGINES}").warnings == ()


def test_keys_and_an_open_network_exclude_each_other(folder: ConfigFolder) -> None:
    problem = folder.problem(f"keys: ./keys\nopen_to_network: true\n{ENGINES}")
    assert problem.where == ("memoria.yaml:2:1  open_to_network", "memoria.yaml:1:1  keys")


def test_the_keys_are_relative_to_the_file_or_one_of_systemds_credentials(folder: ConfigFolder) -> None:
    assert folder.load(f"keys: secret/keys\n{ENGINES}").access.keys == folder.file.parent / "secret" / "keys"
    environ = {**NO_VARIABLES, "CREDENTIALS_DIRECTORY": "/run/credentials/memoria.service"}
    config = folder.load(f"keys: ${{CREDENTIALS_DIRECTORY:-/etc/memoria}}/keys\n{ENGINES}", environ)
    assert config.access.keys == Path("/run/credentials/memoria.service/keys")


def test_hosts_and_origins_are_one_or_several_and_compared_in_lower_case(folder: ConfigFolder) -> None:
    config = folder.load(f"allowed_hosts: Box.example.org\ncors: {{origins: '*'}}\n{ENGINES}")
    assert config.access == Access(None, ("box.example.org",), ("*",))
    config = folder.load(
        "allowed_hosts: [a, '[fd00::1]', '*']\n"
        f"cors: {{origins: [https://App.example.org:443, 'http://localhost:3000', chrome-extension://abc]}}\n{ENGINES}"
    )
    assert config.access.allowed_hosts == ("a", "[fd00::1]", "*")
    assert config.access.origins == (
        "https://app.example.org",
        "http://localhost:3000",
        "chrome-extension://abc",
    )


@pytest.mark.parametrize("host", ["box:8200", "http://box", "box/", "b ox", "fd00::1", "*.example.org", ""])
def test_a_host_that_is_none_is_refused(folder: ConfigFolder, host: str) -> None:
    problem = folder.problem(f"allowed_hosts: ['{host}']\n{ENGINES}")
    assert problem.what.startswith("`allowed_hosts` must be a host's name or address without a port")


@pytest.mark.parametrize(
    "origin", ["app.example.org", "https://app.example.org/", "https://", "null", "https://*.org"]
)
def test_an_origin_that_is_none_is_refused(folder: ConfigFolder, origin: str) -> None:
    problem = folder.problem(f"cors: {{origins: ['{origin}']}}\n{ENGINES}")
    assert problem.what.startswith("`origins` must be")


@pytest.mark.parametrize(
    ("hold", "what"),
    [
        ("seconds: -1", "`seconds` must be at least 0, not `-1`"),
        ("requests: many", "`requests` must be a whole number, not `many`"),
        ("bytes: -1", "`bytes` must be at least 0, not `-1`"),
    ],
)
def test_a_hold_is_bounded(folder: ConfigFolder, hold: str, what: str) -> None:
    assert folder.problem(f"hold: {{{hold}}}\n{ENGINES}").what == what


def test_nothing_is_held_where_the_file_says_so(folder: ConfigFolder) -> None:
    assert folder.load(f"hold: {{seconds: 0, requests: 0, bytes: 0}}\n{ENGINES}").hold == Hold(0, 0, 0)


@pytest.mark.parametrize(
    ("keys", "limit"),
    [("port: 1", 4096), ("max_num_seqs: 4", 64), ("max_num_seqs: 256", 1024), ("max_requests: 7", 7)],
)
def test_an_engine_is_given_what_it_can_run_and_a_queue(folder: ConfigFolder, keys: str, limit: int) -> None:
    assert folder.engine(keys).engines[0].max_requests == limit


def test_the_guard_protects_an_engine(folder: ConfigFolder) -> None:
    config = folder.load(f"guard: {{protect: a, inter_token_ms: 40}}\n{ENGINES}")
    assert config.guard == Guard("a", 40.0)
    assert folder.load(f"guard: {{protect: , inter_token_ms: }}\n{ENGINES}").guard is None


@pytest.mark.parametrize("guard", ["protect: a", "inter_token_ms: 40"])
def test_half_a_guard_is_none(folder: ConfigFolder, guard: str) -> None:
    assert folder.problem(f"guard: {{{guard}}}\n{ENGINES}").what == "`guard` needs both its keys, or none"


@pytest.mark.parametrize("name", ["b", "nobody"])
def test_the_guard_protects_no_engine_that_has_no_tokens(folder: ConfigFolder, name: str) -> None:
    problem = folder.problem(f"guard: {{protect: {name}, inter_token_ms: 40}}\n{ENGINES}")
    assert problem.what == f"`protect` names `{name}`, which is no engine that generates text"
    assert problem.hint == "there is: a"


def test_keys_leave_no_engine_open_without_one(folder: ConfigFolder) -> None:
    """What reaches vLLM's own port passes by memoria's keys."""
    engine = f"engines:\n  a: {{{ENGINE}, port: 8101, transport: tcp}}\n"
    problem = folder.problem(f"keys: ./keys\n{engine}")
    assert problem.what.startswith("`transport: tcp` opens the engine's own port")
    assert problem.where == ("memoria.yaml:3:65  a.transport", "memoria.yaml:1:1  keys")
    assert folder.load(f"admin_keys: ./keys\n{engine}").engines[0].transport == "tcp"
    assert folder.load(f"keys: ./keys\n{engine.replace('tcp', 'uds')}").engines[0].transport == "uds"


def test_filters_strip_and_set_fields_of_any_json_type(folder: ConfigFolder) -> None:
    config = folder.engine(
        "filters: {strip: temperature, set: {top_p: 0.9, n: 1, stop: [a, b], kwargs: {deep: 1}, off: null}}"
    )
    assert config.engines[0].filters == Filters(
        ("temperature",), {"top_p": 0.9, "n": 1, "stop": ["a", "b"], "kwargs": {"deep": 1}, "off": None}
    )
    assert folder.engine("filters: {strip: [a, b]}").engines[0].filters == Filters(("a", "b"))


@pytest.mark.parametrize(
    ("filters", "what"),
    [
        ("strip: [model]", "`strip` must leave `model` alone: it chose the engine"),
        ("set: {model: x}", "`set` must leave `model` alone: it chose the engine"),
        ("set: {top_p: .nan}", "`set` must hold what JSON can say: no `.inf`, no `.nan`"),
        ("set: [a]", "`set` must be a mapping (`key: value` lines), not a list"),
        ("sets: {a: 1}", "unknown key `sets`"),
    ],
)
def test_a_wrong_filter_is_reported_in_a_sentence(folder: ConfigFolder, filters: str, what: str) -> None:
    problem = folder.engine_problem(f"filters: {{{filters}}}")
    assert problem.what == what
    assert problem.where[0].startswith("memoria.yaml:2:")


def test_the_values_in_force_are_shown_with_their_source(folder: ConfigFolder) -> None:
    folder.load(
        f"keys: ./keys\nhold: {{seconds: 5}}\nengines: {{a: {{{ENGINE}, filters: {{set: {{n: 1}}}}}}}}\n"
    )
    shown = {setting.key: (setting.value, setting.source) for setting in explain(folder.file, NO_VARIABLES)}
    assert shown["keys"] == ("./keys", "memoria.yaml:1")
    assert shown["open_to_network"] == ("false", "default")
    assert shown["hold.seconds"] == ("5", "memoria.yaml:2")
    assert shown["hold.requests"] == ("256", "default")
    assert shown["a.max_requests"] == ("4096", "default")
    assert shown["a.filters.set"] == ('{"n": 1}', "memoria.yaml:3")
    assert "guard.protect" not in shown


def test_the_admins_keys_are_a_file_of_their_own(folder: ConfigFolder) -> None:
    access = folder.load(f"admin_keys: ./admins\n{ENGINES}").access
    assert (access.keys, access.admin_keys) == (None, folder.file.parent / "admins")


def test_the_files_of_tls_are_relative_to_the_file(folder: ConfigFolder) -> None:
    home = folder.file.parent
    tls = folder.load(f"tls: {{cert: tls/chain.pem, key: /etc/key}}\n{ENGINES}").tls_files
    assert tls == TlsFiles(home / "tls/chain.pem", Path("/etc/key"))
    assert folder.load(f"tls: {{cert: both.pem}}\n{ENGINES}").tls_files == TlsFiles(home / "both.pem")
    assert folder.load(f"tls: {{cert: , key: }}\n{ENGINES}").tls_files is None


def test_a_key_without_a_certificate_is_refused(folder: ConfigFolder) -> None:
    problem = folder.problem(f"tls: {{key: a.key}}\n{ENGINES}")
    assert (problem.what, problem.where) == (
        "`tls` has a `key` and no `cert`",
        ("memoria.yaml:1:7  tls.key",),
    )


def test_a_refused_wide_bind_names_tls_beside_keys(folder: ConfigFolder) -> None:
    hint = folder.problem(f"listen: 0.0.0.0:1\ntls: {{cert: a}}\n{ENGINES}").hint or ""
    assert hint.startswith("write `keys: FILE`, with `tls` where the network is not trusted")
