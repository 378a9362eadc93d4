"""The table of metrics in systemd/README.md, the dashboard and the code agree."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from memoria.admin.status.status import CertificateStatus
from memoria.admin.telemetry.loop_lag import LoopLag
from memoria.admin.telemetry.metrics import (
    RequestMetrics,
    StartMetrics,
    SwapMetrics,
    log_families,
    status_families,
)
from memoria.admin.telemetry.requests import Requests
from tests.unit.admin.test_status_metrics import BOTH, GUARD

ROOT = Path(__file__).parents[3]


def _own_series() -> dict[str, set[str]]:
    """Every name with the labels that its series have here."""
    found: dict[str, set[str]] = {}
    for family in (
        *status_families(replace(BOTH, guard=GUARD, certificate=CertificateStatus("ab" * 32, 2e9)), ()),
        *StartMetrics(()).families(),
        *SwapMetrics().families(),
        *RequestMetrics(()).families(),
        *log_families(Requests(None)),
        *LoopLag().families(),
    ):
        labels = re.findall(r'(\w+)="', b"".join(family.samples[:1]).decode())
        found[family.name.decode()] = set(labels) - {"le"}  # of every histogram
    return found


def test_the_table_names_every_series_and_its_labels() -> None:
    table = (
        (ROOT / "systemd" / "README.md")
        .read_text()
        .partition("<!-- metrics -->")[2]
        .partition("<!-- /metrics -->")[0]
    )
    listed = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(\w+)` \|([^|]*)\|", table, re.MULTILINE)
    }
    own = _own_series()
    assert set(listed) == set(own)
    assert {name: labels for name, labels in listed.items() if own[name]} == {
        name: labels for name, labels in own.items() if labels
    }


def test_the_dashboard_uses_only_series_that_exist() -> None:
    dashboard = json.loads((ROOT / "configs" / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    used = {
        re.sub(r"_bucket$", "", name) for text in expressions for name in re.findall(r"\bmemoria_\w+", text)
    }
    assert len(used) > 15
    assert used <= set(_own_series())
