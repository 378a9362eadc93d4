"""README.md says what the code says. `MEMORIA_UPDATE_GOLDEN=1` writes its generated parts anew."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from memoria.cli.commands.main import cli
from memoria.engine.lifecycle import TRANSITIONS, State
from memoria.errors import ExitCode
from memoria.text import GIB, gib, grouped
from tests.unit.config_reference import reference
from tests.unit.plan import test_kv_cache, test_weights
from tests.unit.plan_examples import default_config, planned

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SETUP = "pip install . && memoria setup && memoria run"
DEMO = "pip install . && memoria demo"
TESTS = "pip install '.[test]' && memoria setup --cpu && pytest"


def _text() -> str:
    return README.read_text(encoding="utf-8")


def _lifecycle() -> str:
    """The transition table as a diagram; events that lead the same way share an arrow."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, event), following in TRANSITIONS.items():
        arrows.setdefault((state, following), []).append(event.value)
    lines = [f"    {a.value} --> {b.value}: {' / '.join(events)}" for (a, b), events in arrows.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> stopped", *lines, "```"])


def _configuration() -> str:
    rows = [("key", "value", "default", "meaning"), ("---", "---", "---", "---")]
    for doc in reference():
        default = f"`{doc.default}`" if doc.default and doc.default != "required" else doc.default
        rows.append((f"`{doc.key}`", doc.type, default, doc.meaning.replace("|", "\\|")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _planning() -> str:
    """Every term of the default models, in GiB."""
    rows: list[tuple[str, ...]] = [
        (
            "GPU",
            "engine",
            "budget",
            "weights",
            "one step",
            "graphs",
            "KV cache",
            "tokens",
            "requests at once",
            "context",
        ),
        ("---",) * 10,
    ]
    for gpu in ("RTX 4090", "A100 40GB", "H200"):
        plan, outcomes = planned(default_config(), gpu)
        for outcome in outcomes.known.values():
            terms, capacity = outcome.terms, outcome.capacity
            sizes = (outcome.budget.requested_bytes, terms.weights_bytes, terms.step_bytes, terms.graph_bytes)
            rows.append(
                (
                    f"{plan.devices[0].device.name}, {gib(plan.devices[0].device.usable_bytes)}",
                    outcome.engine.name,
                    *(f"{size / GIB:.2f}" for size in (*sizes, outcome.kv_bytes)),
                    grouped(capacity.tokens),
                    f"{capacity.concurrency:.1f} of {grouped(outcome.max_model_len)} tokens",
                    f"{outcome.budget.context_bytes / GIB:.2f}",
                )
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _measured() -> str:
    """How many models of real vLLM the planner is compared with."""
    caches, weights = test_kv_cache.RECORDS, test_weights.RECORDS
    architectures = {record["config"]["architectures"][0] for record in caches.values()}
    quantised = sum("quantization_config" in record["config"] for record in weights.values())
    return (
        f"Real vLLM 0.32 was started with {len(caches)} tiny models of {len(architectures)} architectures "
        "on a CPU: tokens and concurrency\nare the logged ones to the digit. "
        f"Of {len(weights)} models, {quantised} of them quantised, the weights are exact to the byte."
    )


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("lifecycle", _lifecycle),
        ("configuration", _configuration),
        ("planning", _planning),
        ("measured", _measured),
    ],
)
def test_a_generated_part_of_the_readme_is_up_to_date(name: str, make: Callable[[], str]) -> None:
    generated = f"{make()}\n"
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, part, after = re.split(f"{opening}(.*){closing}", _text(), flags=re.DOTALL)
    if os.environ.get("MEMORIA_UPDATE_GOLDEN"):
        part = generated
        README.write_text(f"{before}{opening}{part}{closing}{after}", encoding="utf-8")
    assert part == generated


def _literals() -> set[str]:
    """Every text in the code, with an ellipsis for each value that is filled in."""
    found: set[str] = set()
    for path in (ROOT / "memoria").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.add("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.sub(r"\{\d\}", "…", node.value))
    return found


def _messages() -> list[str]:
    troubleshooting = _text().partition("## Troubleshooting\n")[2].partition("\n## ")[0]
    return re.findall(r"^### (.+)$", troubleshooting, re.MULTILINE)


def test_every_message_under_troubleshooting_is_one_that_the_code_gives() -> None:
    literals = _literals()
    messages = _messages()
    assert len(messages) > 20
    assert [message for message in messages if not any(message in literal for literal in literals)] == []


def test_the_first_commands_run_it_and_then_all_its_tests() -> None:
    blocks = re.findall(r"^```sh\n(.+?)\n```$", _text(), re.MULTILINE | re.DOTALL)
    assert blocks[:3] == [DEMO, SETUP, TESTS]


def test_ci_runs_the_readme_s_own_test_command() -> None:
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    ran = [line.partition(" | ")[0] for line in commands]
    positions = [ran.index(command) for command in TESTS.split(" && ")]
    assert positions == sorted(positions)


def test_every_command_of_the_readme_exists() -> None:
    code = "\n".join(re.findall(r"```sh\n.*?```|`[^`\n]+`", _text(), re.DOTALL))
    named = set(re.findall(r"(?:^|[`& ])memoria ([a-z]+)", code, re.MULTILINE))
    assert named == set(cli.commands)


def test_every_exit_code_is_explained() -> None:
    table = _text().partition("**Exit codes.**")[2].partition("**Signals.**")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) ", table, re.MULTILINE)] == list(ExitCode)


def test_the_variables_of_the_predecessor_are_those_of_the_default_file() -> None:
    table = _text().partition("## Moving from memoria_vllm")[2].partition("What changed:")[0]
    told = set(re.findall(r"`([A-Z][A-Z_]+)`", table))
    keys = re.sub(r"^#.*", "", (ROOT / "memoria.yaml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    used = set(re.findall(r"\$\{([A-Z_]+):-", keys))
    assert told == used


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", _text())
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []
