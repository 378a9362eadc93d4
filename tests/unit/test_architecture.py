"""The house rules: who may import whom, what no file may do. Read from the source, nothing is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 500

# A module's layer is that of the longest name here that it is, or is part of. It imports from its own layer
# or from lower ones.
LAYERS = {
    # facts
    "memoria": 0,
    "memoria.aio": 0,
    "memoria.errors": 0,
    "memoria.text": 0,
    "memoria.logs": 0,
    "memoria.config": 0,
    "memoria.gpu": 0,
    "memoria.plan.checkpoint": 0,
    "memoria.vllm.passenger": 0,
    # decisions, no I/O
    "memoria.plan": 1,
    "memoria.vllm": 1,
    "memoria.engine.lifecycle": 1,
    "memoria.engine.snapshot": 1,
    "memoria.supervisor.scheduler": 1,
    "memoria.vllm.install.facts": 1,
    # one engine, and its vLLM
    "memoria.engine": 2,
    "memoria.vllm.client": 2,
    "memoria.vllm.fetch": 2,
    "memoria.vllm.install": 2,
    # before anything starts
    "memoria.init": 3,
    "memoria.preflight": 3,
    "memoria.supervisor.runtime_dir": 3,
    # all engines
    "memoria.supervisor": 4,
    # HTTP
    "memoria.proxy": 5,
    "memoria.admin": 5,
    # the whole
    "memoria.daemon": 6,
    # edge
    "memoria.bench": 7,
    "memoria.cli": 7,
    "memoria.demo": 7,
    "memoria.__main__": 7,
}

# What the I/O of this project is made of; a decision needs none of it.
IO_MODULES = frozenset(
    {"aiohttp", "asyncio", "psutil", "pynvml", "select", "shutil", "socket", "subprocess", "threading"}
)
# Costly to import: a command that only prints its help must not wait for them.
HEAVY = (
    "aiohttp",
    "asyncio",
    "dotenv",
    "opentelemetry",
    "pydantic",
    "pynvml",
    "starlette",
    "uvicorn",
    "uvloop",
    "yaml",
)


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_name(path): path for path in sorted((ROOT / "memoria").rglob("*.py"))}
# They run in vLLM's processes: to memoria they are data.
PASSENGERS = frozenset(name for name in SOURCES if name.startswith("memoria.vllm.passenger."))
MODULES = tuple(name for name in SOURCES if name not in PASSENGERS)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


@cache
def _imports(module: str) -> tuple[tuple[int, str], ...]:
    """Line and full name of everything imported, also inside functions and for type checking."""
    return tuple(_find_imports(module))


def _find_imports(module: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}:{node.lineno}: a relative import hides the layer"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield node.lineno, submodule if submodule in SOURCES else node.module


def _layer(module: str) -> int:
    name = module
    while name not in LAYERS:
        name = name.rpartition(".")[0]
    # The package itself stands for its version only: a new part of it must say where it belongs.
    assert name != "memoria" or module == "memoria", f"{module} has no layer"
    return LAYERS[name]


def _imported(module: str, wanted: frozenset[str]) -> list[str]:
    return [f"{module}:{line} {name}" for line, name in _imports(module) if name.split(".")[0] in wanted]


def test_a_module_imports_only_from_its_own_layer_or_lower_ones() -> None:
    higher = [
        f"{module}:{line} {name} (layer {_layer(name)} from {_layer(module)})"
        for module in MODULES
        for line, name in _imports(module)
        if name.split(".")[0] == "memoria" and _layer(name) > _layer(module)
    ]
    assert higher == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Also for type checking: what needs another's types is a part of it, or below it."""
    known = set(MODULES)
    graph = {module: {name for _, name in _imports(module)} & known - {module} for module in MODULES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_every_layer_is_that_of_a_module_that_exists() -> None:
    assert [name for name in LAYERS if name not in SOURCES] == []


def test_a_decision_does_no_input_or_output() -> None:
    found = [place for module in MODULES if _layer(module) == 1 for place in _imported(module, IO_MODULES)]
    assert found == []


def test_the_proxy_knows_engines_by_its_router_alone() -> None:
    allowed = ("memoria.proxy", "memoria.aio", "memoria.config.model", "memoria.vllm.facts", "memoria.errors")
    known = [
        f"{module}:{line} {name}"
        for module in MODULES
        if module.startswith("memoria.proxy.")
        for line, name in _imports(module)
        if name.startswith("memoria.") and not name.startswith(allowed)
    ]
    assert known == []


def test_what_knows_vllm_knows_no_engine_of_memorias() -> None:
    """Supervision is built on it, so that a new version of vLLM opens one folder."""
    upward = [
        f"{module}:{line} {name}"
        for module in MODULES
        if module.startswith("memoria.vllm.")
        for line, name in _imports(module)
        if name.startswith("memoria.engine")
    ]
    assert upward == []


def test_a_running_daemon_keeps_no_configuration_beside_its_generation() -> None:
    """The gateway holds a `Generation`, the supervisor its `Deployment`; a copy would outlive a reload."""
    wings = ("daemon", "supervisor", "engine", "proxy", "admin")
    kept = [
        f"{module}:{target.lineno}"
        for module in MODULES
        if module.startswith(tuple(f"memoria.{wing}." for wing in wings))
        for node in ast.walk(_tree(module))
        for target in _stored(node)
        if (isinstance(target, ast.Attribute) and target.attr.lstrip("_") == "config")
        or (isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "Config")
    ]
    assert kept == []


def _stored(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from target.elts if isinstance(target, ast.Tuple) else [target]
    elif isinstance(node, ast.AnnAssign):
        yield node.target


def test_nvml_is_imported_in_one_file_only() -> None:
    importers = {name for module in MODULES for name in _imported(module, frozenset({"pynvml"}))}
    assert {place.partition(":")[0] for place in importers} == {"memoria.gpu.nvml"}


def test_vllm_and_torch_are_imported_nowhere() -> None:
    found = [place for module in SOURCES for place in _imported(module, frozenset({"vllm", "torch"}))]
    assert found == []


def test_the_passenger_needs_nothing_but_the_standard_library() -> None:
    assert PASSENGERS
    foreign = [
        f"{module}:{line} {name}"
        for module in sorted(PASSENGERS)
        for line, name in _imports(module)
        if name.split(".")[0] not in sys.stdlib_module_names
    ]
    assert foreign == []


def test_the_passenger_is_imported_by_nothing_here() -> None:
    importers = [
        f"{module}:{line}"
        for module in MODULES
        for line, name in _imports(module)
        if name in PASSENGERS or name.startswith("memoria_passenger")
    ]
    assert importers == []


def test_only_the_application_knows_where_the_passenger_lies() -> None:
    importers = {m for m in MODULES for _, name in _imports(m) if name == "memoria.vllm.passenger"}
    assert importers == {"memoria.daemon.daemon"}


def test_no_file_is_longer_than_five_hundred_lines() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("memoria", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_the_core_never_prints() -> None:
    printing = [
        f"{module}:{node.lineno}"
        for module in MODULES
        if not module.startswith(("memoria.cli", "memoria.__main__"))
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []


def test_a_logger_is_named_after_its_module() -> None:
    misnamed = [
        f"{module}:{node.lineno}"
        for module in MODULES
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Assign)
        and ast.unparse(node.value).startswith("logging.getLogger(")
        and ast.unparse(node) != "logger = logging.getLogger(__name__)"
    ]
    assert misnamed == []


def test_the_command_line_imports_nothing_heavy() -> None:
    """Also with every command's module: its `--help` imports that, too."""
    commands = (name for name in MODULES if name.startswith("memoria.cli.commands"))
    script = f"import sys, {', '.join(commands)}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == []
