"""`/metrics` over real engines, scraped by a real Prometheus (Debian's), of which the dashboard is asked."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from memoria.admin.telemetry.exposition import Exposition
from memoria.admin.telemetry.metrics import status_families
from tests.ports import free_ports
from tests.programs import need
from tests.promtool import complaints, promtool_complaints
from tests.unit.admin.test_status_metrics import BOTH, GUARD
from tests.vllm.daemon import REPOSITORY, RealDaemon
from tests.vllm.engine_socket import ask_engine

CONFIGS = REPOSITORY / "configs"
DASHBOARD = json.loads((CONFIGS / "grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
FILLED_IN = {"$job": "memoria", "$engine": ".*", "$__rate_interval": "1m"}  # by Grafana
NAME = re.compile(r"\b(?:memoria_|vllm:)\w+")
# There from the first time that it happens, or where the configuration has a guard.
SELDOM = {
    "memoria_engine_restarts_total",
    "memoria_requests_refused_total",
    *NAME.findall(Exposition(status_families(replace(BOTH, guard=GUARD), ())).render().decode()),
}


class Prometheus:
    """Scrapes as the example file says, but this daemon, and every second."""

    def __init__(self, folder: Path, target: int) -> None:
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}/api/v1/query"
        settings = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
        settings["global"]["scrape_interval"] = "1s"
        settings["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(settings))
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                need("prometheus"),
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def query(self, expression: str) -> list[Any]:
        """Raises `OSError` where nobody answers, or not to such an expression."""
        question = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self._url}?{question}", timeout=10) as answer:
            return list(json.load(answer)["data"]["result"])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.fixture(scope="module")
def exposition(daemon: RealDaemon) -> str:
    """After a request to each engine."""
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        client.embeddings.create(model="tiny-embedding", input="x")
        client.completions.create(model="tiny-generation", prompt="x", max_tokens=4)
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def prometheus(
    daemon: RealDaemon, exposition: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """With enough scrapes for a rate."""
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), daemon.port)
    try:
        daemon.wait(lambda: running.query("sum_over_time(up[1m]) >= 3"), "three scrapes")
        yield running
    finally:
        running.stop()


def test_the_whole_is_valid(exposition: str) -> None:
    assert complaints(exposition) == []
    assert promtool_complaints(exposition) == []


@pytest.mark.parametrize("name", ["embedding", "generation"])
def test_every_series_of_an_engine_is_there_with_its_name(
    daemon: RealDaemon, exposition: str, name: str
) -> None:
    def counted(text: str, label: str) -> dict[str, int]:
        names = re.findall(rf"^([\w:]+)\{{[^\n]*{label}", text, re.M)
        return {series: names.count(series) for series in names}

    own = re.sub(r"^([\w:]+) ", r"\1{} ", ask_engine(daemon, name, "/metrics").decode(), flags=re.M)
    merged = counted(exposition, f'engine="{name}"')
    assert {s: n for s, n in merged.items() if not s.startswith("memoria_")} == counted(own, "")


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_of_the_dashboard_has_an_answer(
    prometheus: Prometheus, exposition: str, expression: str
) -> None:
    names = set(NAME.findall(expression))
    there = set(NAME.findall(exposition))
    assert names
    assert names <= there | SELDOM
    for variable, text in FILLED_IN.items():
        expression = expression.replace(variable, text)
    found = prometheus.query(expression)
    assert found or not names <= there


@pytest.mark.parametrize("variable", [v for v in DASHBOARD["templating"]["list"] if v["type"] == "query"])
def test_a_choice_on_the_dashboard_has_values(prometheus: Prometheus, variable: dict[str, Any]) -> None:
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
    assert found
    series = prometheus.query(found[1].replace("$job", "memoria"))
    assert {one["metric"][found[2]] for one in series} in ({"memoria"}, {"embedding", "generation"})
