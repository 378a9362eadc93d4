"""README.md and the manuals agree with the code. `MEMORIA_UPDATE_GOLDEN=1` rewrites their generated parts."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from memoria import __version__
from memoria.cli.commands import COMMANDS
from memoria.engine.lifecycle import TRANSITIONS, State
from memoria.errors import ExitCode
from memoria.text import GIB, gib, grouped
from tests import recording
from tests.unit.config_files import ConfigFolder, folder
from tests.unit.config_reference import reference
from tests.unit.plan import test_kv_cache, test_weights
from tests.unit.plan_examples import default_config, planned

__all__ = ["folder"]  # a fixture

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CONFIGURATION, OPERATIONS, TESTING = (
    ROOT / folder / "README.md" for folder in ("configs", "systemd", "tests")
)
CHANGELOG = ROOT / "CHANGELOG.md"
DOCUMENTS = [
    *(README, CONFIGURATION, OPERATIONS, TESTING, CHANGELOG),
    *sorted((ROOT / ".github").rglob("*.md")),
]
SETUP = "pip install . && memoria setup && memoria run"
DEMO = "pip install . && memoria demo"
TESTS = "pip install '.[test]' && memoria setup --cpu && pytest"


def _text(document: Path = README) -> str:
    return document.read_text(encoding="utf-8")


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def _part(document: Path, name: str) -> tuple[str, str, str]:
    """What stands between the comments of this name, with what comes before and after."""
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, part, after = re.split(f"{opening}(.*){closing}", _text(document), flags=re.DOTALL)
    return before + opening, part, closing + after


def _section(document: Path, heading: str) -> str:
    return _text(document).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


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
    """The number of models with which the planner is compared with real vLLM."""
    caches, weights = test_kv_cache.RECORDS, test_weights.RECORDS
    architectures = {record["config"]["architectures"][0] for record in caches.values()}
    quantised = sum("quantization_config" in record["config"] for record in weights.values())
    return (
        f"Compared with real vLLM 0.32 on a CPU: for {len(caches)} tiny models of {len(architectures)} "
        "architectures, tokens and concurrency equal\nthe logged ones to the digit; "
        f"for {len(weights)} models, {quantised} of them quantised, the weights are exact to the byte."
    )


def _check() -> str:
    return f"```\n$ memoria check\n{_golden('check-80-plain.txt')}```"


def _status() -> str:
    return f"```\n{_golden('pipe-status.txt')}```"


def _golden(name: str) -> str:
    return (recording.GOLDEN / name).read_text(encoding="utf-8").rstrip("\n") + "\n"


@pytest.mark.parametrize(
    ("document", "name", "make"),
    [
        pytest.param(document, make.__name__.strip("_"), make, id=make.__name__.strip("_"))
        for document, make in (
            (README, _check),
            (README, _status),
            (OPERATIONS, _lifecycle),
            (CONFIGURATION, _configuration),
            (CONFIGURATION, _planning),
            (CONFIGURATION, _measured),
        )
    ],
)
def test_a_generated_part_is_up_to_date(document: Path, name: str, make: Callable[[], str]) -> None:
    generated = f"{make()}\n"
    before, part, after = _part(document, name)
    if os.environ.get("MEMORIA_UPDATE_GOLDEN"):
        part = generated
        document.write_text(f"{before}{part}{after}", encoding="utf-8")
    assert part == generated


def test_the_picture_of_a_terminal_is_up_to_date() -> None:
    drawn = recording.svg(recording.recording())
    if os.environ.get("MEMORIA_UPDATE_GOLDEN"):
        recording.PICTURE.write_text(drawn, encoding="utf-8")
    assert recording.PICTURE.read_text(encoding="utf-8") == drawn


def _literals() -> set[str]:
    """Every text in the code, with an ellipsis for each value that is filled in."""
    found: set[str] = set()
    for path in (ROOT / "memoria").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.add("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.sub(r"\{\w+\}", "…", node.value))
    return found


def _messages() -> list[str]:
    return re.findall(r"^### (.+)$", _section(CONFIGURATION, "Troubleshooting"), re.MULTILINE)


def test_every_message_under_troubleshooting_is_one_that_the_code_gives() -> None:
    literals = _literals()
    messages = _messages()
    assert len(messages) > 20
    assert [message for message in messages if not any(message in literal for literal in literals)] == []


def test_the_first_commands_run_it_and_the_last_one_all_its_tests() -> None:
    blocks = re.findall(r"^```sh\n(.+?)\n```$", _text(), re.MULTILINE | re.DOTALL)
    assert (blocks[:2], blocks[-1]) == ([DEMO, SETUP], TESTS)


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(_text().splitlines()) <= 200


def test_the_readmes_file_is_short_and_whole(folder: ConfigFolder) -> None:
    text = _part(README, "example")[1].removeprefix("```yaml\n").removesuffix("```\n")
    assert len(text.splitlines()) <= 12
    config = folder.load(text)
    assert config.warnings == ()
    assert {engine.name: engine.port for engine in config.engines} == dict.fromkeys(
        ["embedding", "generation"]
    )


def test_ci_runs_the_readme_s_own_test_command() -> None:
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    ran = [line.partition(" | ")[0] for line in commands]
    positions = [ran.index(command) for command in TESTS.split(" && ")]
    assert positions == sorted(positions)


def _commands(document: Path) -> set[str]:
    code = "\n".join(re.findall(r"```sh\n.*?```|`[^`\n]+`", _text(document), re.DOTALL))
    code = re.sub(r"# .*", "", code)
    return set(re.findall(r"(?:^|(?<!-u)[`& /])memoria ([a-z]+)", code, re.MULTILINE))


def test_the_readme_names_every_command() -> None:
    assert _commands(README) == set(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_command_that_is_named_exists(document: Path) -> None:
    assert _commands(document) <= set(COMMANDS)


def test_every_exit_code_is_explained() -> None:
    table = _section(OPERATIONS, "Exit codes")
    assert [int(code) for code in re.findall(r"^\| (\d+) ", table, re.MULTILINE)] == list(ExitCode)


def test_the_variables_of_the_predecessor_are_those_of_the_default_file() -> None:
    table = _section(CONFIGURATION, "Moving from memoria_vllm").partition("What changed:")[0]
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", table))
    keys = re.sub(r"^#.*", "", (ROOT / "memoria.yaml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    used = set(re.findall(r"\$\{([A-Z_]+):-", keys))
    assert named == used


def _anchors(document: Path) -> set[str]:
    """Those that GitHub gives to headings, which it reads outside of code blocks."""
    prose = re.sub(r"^```.*?^```$", "", _text(document), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_link_leads_somewhere(document: Path) -> None:
    text = _text(document)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not link.startswith("https://") and (
            not target.exists() or (anchor and anchor not in _anchors(target))
        ):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_path_that_is_named_exists(document: Path) -> None:
    named = re.findall(r"`((?:memoria/(?!ID\b)|tests/|configs/|systemd/|\.ci/)[\w./-]+)`", _text(document))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_version_is_in_the_changelog_with_its_date() -> None:
    assert re.search(
        rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", _text(CHANGELOG), re.MULTILINE
    )


def test_every_example_file_is_named() -> None:
    examples = {path.name for path in CONFIGURATION.parent.iterdir()} - {CONFIGURATION.name}
    assert examples <= set(re.findall(r"\]\(([^)]+)\)", _text(CONFIGURATION)))
