"""A daemon with a certificate: on every address, renewed while connections stay, refused when it is wrong."""

from __future__ import annotations

import shutil
import signal
import ssl
import time
from contextlib import closing

import pytest

from memoria.errors import ExitCode
from tests.certificates import FOLDER, copied, trusting
from tests.integration.daemon import Box, RunningDaemon
from tests.integration.http_client import Streaming, ask, connect

PROMPT = {"model": "writer", "prompt": "a", "max_tokens": 2}
TLS = "tls: {cert: tls.pem, key: tls.key}"


def put(box: Box, cert: str, key: str) -> None:
    """As certbot renews them: under the same names."""
    for name, to in ((cert, "tls.pem"), (key, "tls.key")):
        (copy,) = copied(box.folder / "models", name)
        copy.rename(box.folder / to)


def start(box: Box, top: str = TLS) -> RunningDaemon:
    put(box, "server.pem", "server.key")
    box.configure(top=top)
    box.tls = trusting("server") if top else None
    daemon = box.start()
    daemon.until_ready()
    daemon.forget()
    return daemon


@pytest.fixture
def daemon(box: Box) -> RunningDaemon:
    return start(box)


def is_plain(port: int) -> bool:
    try:
        return ask(port, "GET", "/livez").status == 200
    except OSError:
        return False


def test_every_address_speaks_tls_and_every_view_says_so(box: Box, daemon: RunningDaemon) -> None:
    for port in (box.ports.main, box.ports.generation):
        answer = daemon.ask("POST", "/v1/completions", PROMPT, port=port)
        assert answer.status == 200
        assert not is_plain(port)
    assert daemon.ask("GET", "/").status == 200
    status = daemon.status()  # over the admin socket, which has none
    assert status.url == f"https://127.0.0.1:{box.ports.main}"
    certificate = status.certificate
    assert certificate is not None
    assert certificate.expires == ssl.cert_time_to_seconds("Jan  1 00:00:00 2120 GMT")
    metrics = daemon.ask("GET", "/metrics").text
    assert "\nmemoria_certificate_expiry_timestamp_seconds 4733510400" in metrics
    done = box.call("bench", "embedding", "--seconds", "1", "--clients", "1")
    assert (done.returncode, "failed" in done.stdout) == (0, False), done.stderr


def test_a_renewed_certificate_is_taken_and_no_connection_is_dropped(box: Box, daemon: RunningDaemon) -> None:
    box.vllm.set_faults(token_seconds=0.2)
    port = box.ports.main
    with (
        closing(connect(port, box.tls)) as kept,
        Streaming(port, PROMPT | {"max_tokens": 10}, tls=box.tls) as s,
    ):
        kept.request("GET", "/livez")
        assert kept.getresponse().read()
        assert s.event()
        put(box, "renewed.pem", "renewed.key")
        daemon.signal(signal.SIGHUP)
        assert daemon.told("memoria", "reloaded") == "tls"
        box.tls = trusting("renewed")
        assert daemon.ask("GET", "/livez").status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(port, "GET", "/livez", tls=trusting("server"))
        kept.request("GET", "/livez")
        assert kept.getresponse().status == 200
        assert s.rest()[-1] == "[DONE]"
    assert box.call("reload").stdout == "nothing has changed\n"


def test_a_wrong_one_changes_nothing_and_is_explained(box: Box, daemon: RunningDaemon) -> None:
    put(box, "renewed.pem", "server.key")
    done = box.call("reload")
    assert done.returncode == ExitCode.CONFIG
    assert "the key is not that of the first certificate" in done.stderr
    assert "tls.cert" in done.stderr
    assert daemon.ask("GET", "/livez").status == 200
    put(box, "expired.pem", "server.key")
    done = box.call("reload")
    assert done.returncode == 0
    assert f"warning: {box.folder}/tls.pem expired on 2021-01-01" in done.stderr


def test_tls_is_turned_on_and_off_by_a_reload(box: Box) -> None:
    daemon = start(box, top="")
    port = box.ports.main
    with closing(connect(port)) as plain:
        plain.request("GET", "/livez")
        assert plain.getresponse().read()
        box.configure(top=TLS)
        assert box.call("reload").stdout == "changed: tls\n"
        box.tls = trusting("server")
        for each in (port, box.ports.generation):
            assert daemon.ask("GET", "/livez", port=each).status == 200
            assert not is_plain(each)
        plain.request("GET", "/livez")
        assert plain.getresponse().status == 200
    box.configure()
    assert box.call("reload").stdout == "changed: tls\n"
    assert is_plain(port)
    assert is_plain(box.ports.generation)


def test_clients_that_stay_connected_do_not_hold_up_the_end(box: Box, daemon: RunningDaemon) -> None:
    idle = [connect(box.ports.main, box.tls) for _ in range(20)]
    for connection in idle:
        connection.connect()
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 8
    for connection in idle:
        connection.close()


def test_the_daemon_that_takes_over_goes_on_with_tls(box: Box, daemon: RunningDaemon) -> None:
    after = box.start("--take-over")
    assert daemon.exit_code() == 0
    after.until_ready()
    assert after.ask("POST", "/v1/completions", PROMPT).status == 200
    assert not is_plain(box.ports.main)


def test_check_and_run_refuse_what_is_wrong_all_at_once(box: Box) -> None:
    shutil.copy(FOLDER / "server.key", box.folder / "keys")
    box.configure(top="keys: keys\ntls: {cert: gone.pem, key: tls.key}")
    for command in ("check", "run"):
        done = box.call(command)
        assert done.returncode == ExitCode.CONFIG
        assert done.stderr.count("cannot read") == 2
        assert "this line is not `name: key`" in done.stderr
        assert "memoria.yaml:7" in done.stderr
    put(box, "expired.pem", "server.key")
    box.configure(top=TLS)
    done = box.call("check")
    assert done.returncode == 0
    assert f"warning: {box.folder}/tls.pem expired on 2021-01-01 00:00 UTC" in done.stderr
