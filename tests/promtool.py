"""Prometheus's rules for an exposition: those of its Python client's strict parser, and promtool's own."""

from __future__ import annotations

import re
import subprocess
from collections import Counter

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_strictly
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.programs import need


def complaints(exposition: str) -> list[str]:
    """What is wrong with an exposition in Prometheus's text format.

    The parser for that format accepts almost anything, the one for OpenMetrics does not: it checks names and
    labels, that a family stands together, and that buckets add up. So the text is read as OpenMetrics, too.
    https://prometheus.io/docs/instrumenting/exposition_formats/, https://prometheus.io/docs/specs/om/
    """
    try:
        families = list(parse(exposition))
        list(parse_strictly(_as_openmetrics(exposition)))
    except ValueError as error:
        return [str(error)]
    series = Counter(
        (sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples
    )
    return [
        *(f"{name} {labels}: more than once" for (name, *labels), count in series.items() if count > 1),
        *(f"{family.name}: no help" for family in families if not family.documentation),
    ]


def promtool_complaints(exposition: str) -> list[str]:
    """What `promtool check metrics` says, without vLLM's own names, which it does not like."""
    ended = subprocess.run(
        [need("promtool"), "check", "metrics"], input=exposition, capture_output=True, text=True, check=False
    )
    lines = (ended.stdout + ended.stderr).splitlines()
    assert ended.returncode in (0, 3), lines  # 3: there are complaints
    return [line for line in lines if not line.startswith("vllm:")]


def _as_openmetrics(exposition: str) -> str:
    """The same series. A counter's family has no `_total` there, and a `_created` gauge, with which the text
    format says when a counter began, belongs to the counter."""
    text = exposition
    # not of every name: vLLM has a histogram `iteration_tokens_total`
    for counter in re.findall(r"^# TYPE (\S+)_total counter$", exposition, flags=re.MULTILINE):
        text = re.sub(
            rf"^# (HELP|TYPE) {re.escape(counter)}_total ", rf"# \1 {counter} ", text, flags=re.MULTILINE
        )
    text = re.sub(r"^(# (HELP|TYPE) )?[\w:]+_created[ {].*\n", "", text, flags=re.MULTILINE)
    return f"{text}# EOF\n"
