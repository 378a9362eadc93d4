"""Why an engine ended, by the tail of its log and its exit status."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memoria.vllm.facts import ExitStatus, LaunchSettings, signal_name
from memoria.vllm.failures import FAILURES, Kind, Retry
from memoria.vllm.log_lines import text_of

LONGEST_QUOTE = 300  # characters of an error that is not in the table
_FOLLOWING = 6  # lines that may belong to an error's text
# Lines that vLLM 0.32 and uvicorn write while all is well: routes, statistics, each request.
_ROUTINE = re.compile(r"Route: /|Avg prompt throughput: |^INFO:     ")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`cause` is a sentence without a full stop, `hint` the next step, `retry` whether the same start may
    succeed next time, `kind` the area of the cause."""

    cause: str
    hint: str
    retry: Retry
    kind: Kind = "error"


def diagnose(tail: Sequence[str], exit: ExitStatus, settings: LaunchSettings | None = None) -> Diagnosis:  # noqa: A002
    """The *first* error that the table explains; later ones are mostly its echo in another process.
    `settings` give the values to try."""
    texts = [text_of(line) for line in tail]
    errors = list(_errors(texts))
    if exit.signal != signal.SIGKILL:  # no Python error ends like that, whatever is in the log
        for error in errors:
            if explained := _explain(error, settings):
                return explained
    oom_kill = None if settings is None else settings.oom_kill
    if oom_kill and _was_killed(texts, errors, exit):
        return _HOST_OUT_OF_MEMORY
    found = (
        _by_signal(exit.signal)
        or _by_signal(_signal_of_a_child(texts))
        or _by_error(errors)
        or _by_silence(texts, exit)
    )
    return _KILLED_BY_HAND.get(found, found) if oom_kill is False else found


def excerpt(tail: Sequence[str], lines: int) -> Sequence[str]:
    """The part of a log's tail that shows why the engine ended: up to the end of the first error, else the
    last lines that are not routine. (At exit, libraries may add pages, such as nanobind's list of leaks.)"""
    tail = [line for line in tail if not _ROUTINE.search(text_of(line))]
    for number, line in enumerate(tail):
        text = text_of(line)
        if _begins_error(text) and not any(echo in text for echo in _ECHOES):
            end = min(len(tail), number + 1 + _FOLLOWING)
            return tail[max(0, end - lines) : end]
    return tail[-lines:]


def _explain(error: str, settings: LaunchSettings | None) -> Diagnosis | None:
    for failure in FAILURES:
        if match := failure.pattern.search(error):
            hint = failure.hint_for(match, settings)
            return Diagnosis(failure.cause_for(match), hint, failure.retry, failure.kind)
    return None


# ---------------------------------------------------------------------- errors in the log

_ECHOES = (
    "Engine core initialization failed",  # v1/engine/utils.py
    "Frontend process failed during engine core initialization",
    "EngineCore encountered an issue",  # EngineDeadError, v1/engine/exceptions.py
    "died with exit code",  # v1/utils.py
)
_ARGPARSE = re.compile(r"[\w./-]{1,80}(?: \w{1,20})?: error: ")


def _errors(texts: Sequence[str]) -> Iterator[str]:
    """Each error with the lines that belong to it. vLLM quotes error names in warnings, so only a line that
    begins with one counts."""
    for number, text in enumerate(texts):
        if _begins_error(text) and not any(echo in text for echo in _ECHOES):
            block = [text]
            for line in texts[number + 1 : number + 1 + _FOLLOWING]:
                if _begins_error(line) or line.startswith(("Traceback (", "Process ", "INFO:")):
                    break
                block.append(line)
            yield "\n".join(block)


def _begins_error(text: str) -> bool:
    name = text.partition(":")[0]
    if name.endswith(("Error", "Exception")):
        return len(name) <= 200 and name.replace(".", "_").isidentifier()
    return text.startswith("ERROR: ") or _ARGPARSE.match(text) is not None


def _by_error(errors: Sequence[str]) -> Diagnosis | None:
    if not errors:
        return None
    first = errors[0].partition("\n")[0].rstrip(". ")
    quote = first if len(first) <= LONGEST_QUOTE else f"{first[:LONGEST_QUOTE]}..."
    return Diagnosis(quote, "the whole traceback is in the engine's log (`memoria logs`)", "yes")


# ---------------------------------------------------------------------- signals

# Worker proc ... died unexpectedly (exit code: -4), v1/executor/multiproc_executor.py
_CHILD_ENDED = re.compile(r"died unexpectedly \(exit code: -(\d{1,3})\)|'EngineCore\w{0,20}': -(\d{1,3})\b")

_SIGNALS: dict[int, Diagnosis] = {
    signal.SIGILL: Diagnosis(
        "the processor lacks an instruction that this build of vLLM uses (SIGILL)",
        "on a virtual machine bfloat16 is the usual reason: set `dtype: float32` or `dtype: half`",
        "no",
        "signal",
    ),
    signal.SIGKILL: Diagnosis(
        "killed by SIGKILL; unless this was done by hand, the host ran out of memory",
        "look for `oom` in the kernel's log (`journalctl -k`); lower the engines' share of the host's memory",
        "yes",
        "signal",
    ),
}


_CORE_VANISHED = Diagnosis(
    "its engine core died without an error: killed, or the host ran out of memory",
    "look for `oom` in the kernel's log (`journalctl -k`)",
    "yes",
    "silence",
)

# Where the kernel's counters have not moved, it killed nothing for memory.
_WHO = "find the sender: a person, a script, or a daemon such as earlyoom or systemd-oomd"
_KILLED_BY_HAND = {
    _SIGNALS[signal.SIGKILL]: Diagnosis(
        "killed by SIGKILL from outside; the kernel has killed nothing for memory", _WHO, "yes", "signal"
    ),
    _CORE_VANISHED: Diagnosis(
        "its engine core died without an error, as a process does that is killed; the kernel has killed "
        "nothing for memory",
        _WHO,
        "yes",
        "silence",
    ),
}

_HOST_OUT_OF_MEMORY = Diagnosis(
    "the host's memory ran out, and the kernel killed one of its processes (oom_kill)",
    "give the host or memoria's cgroup more memory (`MemoryMax=` of its unit, a container's limit), "
    "or run fewer or smaller engines",
    "yes",
    "signal",
)


def _was_killed(texts: Sequence[str], errors: Sequence[str], exit: ExitStatus) -> bool:  # noqa: A002
    """SIGKILL of the leader or of a child, or an end without an error."""
    return signal.SIGKILL in (exit.signal, _signal_of_a_child(texts)) or (exit.signal is None and not errors)


def _signal_of_a_child(texts: Sequence[str]) -> int | None:
    for text in texts:
        if match := _CHILD_ENDED.search(text):
            return int(match[1] or match[2])
    return None


def _by_signal(number: int | None) -> Diagnosis | None:
    if number is None:
        return None
    if known := _SIGNALS.get(number):
        return known
    crashed = number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)
    what = "crashed in native code" if crashed else "ended by a signal from outside"
    return Diagnosis(
        f"{what} ({signal_name(number)})",
        "the last lines of the engine's log may say more (`memoria logs`)",
        "yes",
        "signal",
    )


def _by_silence(texts: Sequence[str], exit: ExitStatus) -> Diagnosis:  # noqa: A002
    if any(echo in text for text in texts for echo in _ECHOES):
        return _CORE_VANISHED
    return Diagnosis(
        f"{exit} without an error in its log",
        "its last lines may say more (`memoria logs`)",
        "yes",
        "silence",
    )
