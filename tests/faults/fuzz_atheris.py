"""Coverage-guided fuzzing of everything that reads untrusted bytes:

    pip install '.[fuzz]'
    python -m tests.faults.fuzz_atheris {requests,config,logs} [-max_total_time=600] [any option of libFuzzer]

The properties are those of the hypothesis tests of the same readers; here coverage finds the examples,
starting from a corpus. Exits with 77 and writes the bytes to a file where a property fails.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["memoria"]):
    from memoria.config.load import load
    from memoria.errors import MemoriaError
    from memoria.proxy.downstream import connection
    from memoria.vllm.facts import ExitStatus
    from tests.faults import corpus, test_fuzz_logs, test_fuzz_requests

SHORT_S = 0.05
Reader = Callable[[bytes], None]
ROOT = Path(__file__).parents[2]


class Said(logging.Handler):
    """Errors in memoria's log; in the place of pytest's `caplog`."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def clear(self) -> None:
        self.records.clear()


def requests(folder: Path) -> Reader:
    """An engine reads what memoria meant. The first byte is where the rest is cut in two."""
    connection.HEAD_S = SHORT_S  # half of a request is as good as all of it, and comes often
    bench, said = test_fuzz_requests.Bench(folder), Said()
    bench.rig.context.client_idle, bench.rig.context.connections.interval = SHORT_S, SHORT_S / 4
    check = test_fuzz_requests.test_whatever_a_client_sends_an_engine_reads_what_memoria_meant

    def read(data: bytes) -> None:
        check.hypothesis.inner_test(bench, said, wire=data[1:], cuts=list(data[:1]))  # type: ignore[attr-defined]
        bench.rig.hang_up()

    return read


def config(folder: Path) -> Reader:
    """A file is a configuration, or its errors are reported."""
    file = folder / "memoria.yaml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        with suppress(MemoriaError):
            load(file, {"HOME": str(folder)})

    return read


def logs(_: Path) -> Reader:
    """Lines show a phase or nothing, and the end has a cause that can be shown."""
    phases = test_fuzz_logs.test_any_line_tells_a_phase_or_nothing
    diagnosis = test_fuzz_logs.test_any_log_has_a_diagnosis_that_can_be_shown

    def read(data: bytes) -> None:
        lines = data.decode(errors="replace").split("\n")
        phases.hypothesis.inner_test(lines)  # type: ignore[attr-defined]
        diagnosis.hypothesis.inner_test(lines, ExitStatus(code=1))  # type: ignore[attr-defined]

    return read


def seeds(target: str) -> Iterator[bytes]:
    match target:
        case "requests":
            for name in (path.stem for path in corpus.FOLDER.iterdir()):
                yield from (b"\xff" + data for data in corpus.requests(name).values())
        case "config":
            for file in (ROOT / "memoria.yaml", *(ROOT / "configs").glob("*.yaml")):
                yield file.read_bytes()
        case "logs":
            for line in test_fuzz_logs.REAL:
                yield line.encode()


TARGETS: dict[str, Callable[[Path], Reader]] = {"requests": requests, "config": config, "logs": logs}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in TARGETS:
        print(__doc__, file=sys.stderr)
        return 2
    target, *options = arguments
    folder = Path(tempfile.mkdtemp(prefix="memoria-fuzz-"))
    known, work = folder / "corpus", folder / "work"
    known.mkdir()
    work.mkdir()
    for number, seed in enumerate(seeds(target)):
        (known / str(number)).write_bytes(seed)
    print(f"{target}: examples in {known}", file=sys.stderr)
    atheris.Setup([sys.argv[0], *options, str(known)], TARGETS[target](work))
    atheris.Fuzz()  # ends the process itself
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
