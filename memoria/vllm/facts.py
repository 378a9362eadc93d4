"""Facts that are passed around: where an engine listens, what it was started with, how far it is, how it
ended."""

from __future__ import annotations

import math
import signal as signals
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from memoria.text import GIB, MIB, duration, size_text

_HUNDREDTH = Decimal("0.01")
_GIB = 2**30
# Where it is unknown how much is missing: a step that is worth a start.
_A_STEP = Decimal("0.05")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"


EngineAddress = UnixAddress | TcpAddress
# The engine core's own figures: name and value of each, in the order of vLLM's /metrics.
Progress = tuple[tuple[bytes, bytes], ...]
# What one request was answered: a text, or numbers.
Sample = str | tuple[float, ...]
OTHER_ROUNDING = 0.05  # of a vector's length


def agree(before: Sample, now: Sample) -> bool:
    """Whether the same weights gave both: the same text, or numbers that differ by rounding."""
    if isinstance(before, str) or isinstance(now, str):
        return before == now
    if len(before) != len(now):
        return False
    apart = math.dist(before, now)
    return apart <= OTHER_ROUNDING * math.hypot(*before)  # never with a NaN


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far an engine's download is; the rate is that of the last seconds, None while it is unknown."""

    done_bytes: int
    total_bytes: int
    bytes_per_second: float | None = None

    @property
    def seconds_left(self) -> float | None:
        return (self.total_bytes - self.done_bytes) / self.bytes_per_second if self.bytes_per_second else None

    @property
    def percent(self) -> int | None:
        return self.done_bytes * 100 // self.total_bytes if self.total_bytes else None

    def __str__(self) -> str:
        unit = GIB if self.total_bytes >= GIB else MIB
        text = f"{self.done_bytes / unit:.1f} of {size_text(self.total_bytes)}"
        if self.bytes_per_second and self.seconds_left is not None:
            text += f", {size_text(self.bytes_per_second)}/s, {duration(self.seconds_left)} left"
        return text


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The code that a process exited with, or the number of the signal that ended it; neither if that is
    unknown."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {signal_name(self.signal)}"
        return "ended" if self.code is None else f"exited {self.code}"


def signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """`total_bytes`: what the fraction is of. `kv_gib`: what vLLM said was left for the KV cache, below 0
    where nothing was. `oom_kill`: whether the kernel killed one of memoria's processes meanwhile, to free
    memory; None where it does not say."""

    fraction: Decimal
    total_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_gib: float | None = None
    oom_kill: bool | None = None

    def raised(self, missing_gib: float | None) -> Decimal | None:
        """The fraction, in whole hundredths, with `missing_gib` more, or a step more where that is unknown;
        None where the device has less."""
        if missing_gib is None:
            more = self.fraction + _A_STEP
        else:
            more = self.fraction + Decimal(missing_gib) * _GIB / self.total_bytes
        wanted = max(more.quantize(_HUNDREDTH, ROUND_CEILING), self.fraction + _HUNDREDTH)
        return wanted if wanted <= 1 else None
