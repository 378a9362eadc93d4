"""`memoria pull`, `check` and `setup` where only a proxy reaches the network, with a certificate of its own.
The names are made up: without the proxy there is nothing."""

from __future__ import annotations

import json
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from memoria.errors import UnavailableError
from memoria.vllm.certificates import with_certificates
from memoria.vllm.install.find import environment_dir
from memoria.vllm.install.setup import PINNED, run_pip, setup
from tests.certificates import FOLDER
from tests.forward_proxy import proxy_to
from tests.hub import serving
from tests.integration.daemon import Box
from tests.integration.package_index import Steps, offer_torch, publish
from tests.integration.test_vllm_env_setup import pypi
from tests.unit.checkpoints import LLAMA_8B

__all__ = ["pypi"]  # a fixture

HOST = "memoria.test"  # of the certificate
BUNDLE = str(FOLDER / "server.pem")
MIB = 2**20
VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(FOLDER / "server.pem", FOLDER / "server.key")
    return context


@pytest.fixture
def remote(box: Box) -> Box:
    """`generation` has a model of the hub's."""
    box.configure()
    box.file.write_text(box.file.read_text().replace("model: ./models/writer", "model: org/name"))
    return box


def test_a_plain_proxy_fetches_a_model(remote: Box, tmp_path: Path) -> None:
    with serving() as hub, proxy_to(hub.server_address[1]) as proxy:
        hub.files["main", "config.json"] = json.dumps(LLAMA_8B).encode()
        hub.files["main", "model.safetensors"] = os.urandom(9 * MIB)
        env = {"HF_ENDPOINT": f"http://{HOST}", "HF_HOME": str(tmp_path / "hf"), "HTTP_PROXY": proxy.address}
        done = remote.call("pull", "generation", **env)
        assert (done.returncode, done.stderr) == (0, "")
        assert proxy.reached == {f"http://{HOST}"}


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_tunnel_and_a_certificate_of_ones_own_reach_pull_and_check(
    remote: Box, tmp_path: Path, variable: str
) -> None:
    with serving(server_tls()) as hub, proxy_to(hub.server_address[1]) as proxy:
        hub.files["main", "config.json"] = json.dumps(LLAMA_8B).encode()
        hub.files["main", "model.safetensors"] = os.urandom(9 * MIB)
        env = {
            "HF_ENDPOINT": f"https://{HOST}",
            "HF_HOME": str(tmp_path / "hf"),
            "HTTPS_PROXY": proxy.address,
            variable: BUNDLE,
        }
        checked = remote.call("check", **env)
        assert "cannot tell whether the hub has" not in checked.stderr
        assert "HEAD /org/name/resolve/main/config.json" in hub.requests
        done = remote.call("pull", "generation", **env)
        assert (done.returncode, done.stderr) == (0, "")
        assert proxy.reached == {f"{HOST}:443"}


def test_a_certificate_that_is_not_trusted_is_named_with_what_to_set(remote: Box, tmp_path: Path) -> None:
    with serving(server_tls()) as hub, proxy_to(hub.server_address[1]) as proxy:
        env = {
            "HF_ENDPOINT": f"https://{HOST}",
            "HF_HOME": str(tmp_path / "hf"),
            "HTTPS_PROXY": proxy.address,
        }
        done = remote.call("pull", "generation", **env)
    assert done.returncode == 78
    assert "error: the hub's certificate is not trusted: " in done.stderr
    assert "hint: name your company's CA bundle in SSL_CERT_FILE" in done.stderr
    assert hub.requests == []


def test_a_proxy_that_is_down_is_a_network_that_is_down(remote: Box, tmp_path: Path) -> None:
    env = {
        "HF_ENDPOINT": f"https://{HOST}",
        "HF_HOME": str(tmp_path / "hf"),
        "HTTPS_PROXY": "http://127.0.0.1:1",
    }
    done = remote.call("pull", "generation", **env)
    assert done.returncode == 69
    assert "error: the hub cannot be reached: " in done.stderr
    assert "check the network, HF_ENDPOINT and the proxies" in done.stderr


@contextmanager
def https(folder: Path) -> Iterator[int]:
    """A package index."""
    handler = partial(_Quiet, directory=str(folder))
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.socket = server_tls().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients that do not trust it."""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_setup_goes_through_a_tunnel_with_a_certificate_of_ones_own(
    pypi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_torch(pypi)
    publish(pypi, "small", "1.0", {"small.py": ""})
    for variable in (*VARIABLES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with https(pypi) as port, proxy_to(port) as proxy:
        monkeypatch.setenv("PIP_INDEX_URL", f"https://{HOST}/")
        monkeypatch.setenv("HTTPS_PROXY", proxy.address)
        monkeypatch.setenv("SSL_CERT_FILE", BUNDLE)
        made = setup("cpu", tmp_path / "home", Steps())
        assert made.version == PINNED["cpu"]
        assert proxy.reached == {f"{HOST}:443"}
        python = environment_dir(tmp_path / "home", PINNED["cpu"], "cpu") / "bin/python"
        monkeypatch.delenv("SSL_CERT_FILE")
        for variable in VARIABLES[1:]:
            monkeypatch.setenv(variable, BUNDLE)
            run_pip(python, ["install", "--force-reinstall", "small==1.0"], lambda _: None)
            monkeypatch.delenv(variable)
        with pytest.raises(UnavailableError):
            run_pip(python, ["install", "--force-reinstall", "--retries=0", "small==1.0"], lambda _: None)


def test_one_variable_stands_for_all_and_none_is_replaced(tmp_path: Path) -> None:
    assert with_certificates({"A": "b"}) == {"A": "b"}
    found = with_certificates({"CURL_CA_BUNDLE": "/c", "PIP_CERT": "/p", "SSL_CERT_FILE": ""})
    assert found == {
        "SSL_CERT_FILE": "/c",
        "REQUESTS_CA_BUNDLE": "/c",
        "CURL_CA_BUNDLE": "/c",
        "PIP_CERT": "/p",
    }
    folder = with_certificates({"REQUESTS_CA_BUNDLE": str(tmp_path)})
    assert folder == {"SSL_CERT_DIR": str(tmp_path), "REQUESTS_CA_BUNDLE": str(tmp_path)}
