"""memoria against nginx and vllm-router in interleaved rounds:  python -m tests.bench.relay

    --smoke       half a minute at most, figures of no worth: does it work?
    --tcp         all three reach the engines over TCP (else memoria and nginx do over Unix sockets)
    --markdown    the table for tests/README.md
    --install     vllm-router from PyPI into an environment in ~/.cache/memoria-bench

MEMORIA_OLD_PYTHON, where it is set, is the interpreter of an environment with another version of memoria,
which is measured in the same rounds as `old`.

One core is for the proxy, one for the load; other work on the machine spoils the figures. Peers that are not
installed are named and left out. Every answer is compared with what the upstream sent; exit code 1 if one was
wrong. A measure is repeated when other processes disturbed it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.relay import load_program, table
from tests.bench.relay.load_program import Load
from tests.bench.relay.measures import MEASURES, Bench, memory
from tests.bench.relay.targets import TARGETS, Absent, Target, Upstream, install_peers

Figures = dict[str, dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.install:
        install_peers()
        return 0
    names = options.only.split(",") if options.only else list(TARGETS)
    with started(names, tcp=options.tcp) as (load, upstream, targets):
        bench = Bench(load, options.milliseconds)
        if options.smoke:
            bench.milliseconds, bench.streams, bench.tries, options.rounds = 50, 100, 1, 1
        rounds = list(measure(bench, upstream, targets, options.rounds))
    _show(rounds, targets, options)
    if bench.disturbed:
        print(f"other processes worked during: {', '.join(bench.disturbed)}", file=sys.stderr)
    for trouble in bench.troubles:
        print(f"wrong: {trouble}", file=sys.stderr)
    return 1 if bench.troubles else 0


def cores() -> tuple[int | None, int | None]:
    """One for the load and one for the proxy, where there are two."""
    first, *others = sorted(os.sched_getaffinity(0))
    return (first, others[0]) if others else (None, None)


@contextmanager
def started(names: Sequence[str], *, tcp: bool = False) -> Iterator[tuple[Load, Upstream, dict[str, Target]]]:
    """The load program and every target that is installed."""
    for_load, for_target = cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-")))
        load = stack.enter_context(Load(load_program.build(folder), for_load))
        upstream = Upstream.of(load, folder, tcp=tcp)
        targets: dict[str, Target] = {}
        for name in names:
            try:
                targets[name] = Target(name, folder / name, upstream, for_target)
            except Absent as absent:
                print(f"left out: {absent}", file=sys.stderr)
                continue
            stack.callback(targets[name].stop)
        yield load, upstream, targets


def measure(bench: Bench, upstream: Upstream, targets: dict[str, Target], count: int) -> Iterator[Figures]:
    """Yields each round's figures."""
    held = {name: memory(bench, name, target.port, target.pids()) for name, target in targets.items()}
    for number in range(count):
        figures: Figures = {name: dict(found) for name, found in held.items()} | {table.DIRECT: {}}
        names = list(figures)
        for step, (title, take) in enumerate(MEASURES.items()):
            turn = (number + step) % len(names)  # nobody always comes first
            for name in names[turn:] + names[:turn]:
                direct = name == table.DIRECT
                port = upstream.generation if direct else targets[name].port
                pids = () if direct else targets[name].pids()
                figures[name] |= take(bench, name, port, pids)
            _progress(f"round {number + 1}/{count} {title}")
        yield figures
    _progress("")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def _show(rounds: list[Figures], targets: dict[str, Target], options: argparse.Namespace) -> None:
    if options.json:
        machine = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        print(json.dumps({"machine": machine, "rounds": rounds}, indent=2))
        return
    rows = table.rows(rounds, list(targets))
    print(table.as_markdown(rows) if options.markdown else table.as_text(rows))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.relay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--milliseconds", type=int, default=1000, help="of each measure (1000)")
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(TARGETS)}")
    for flag in ("smoke", "tcp", "markdown", "json", "install"):
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped
    sys.exit(main())
