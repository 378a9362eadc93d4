"""Where an engine listens, and what it was started with, as far as others need to know."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

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


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """`total_bytes`: what the fraction is of. `kv_gib`: what vLLM said was left for the KV cache, below 0
    where nothing was. `oom_kill`: the kernel killed a process of this cgroup meanwhile, to free memory."""

    fraction: Decimal
    total_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_gib: float | None = None
    oom_kill: bool = False

    def raised(self, missing_gib: float | None) -> Decimal | None:
        """The fraction, in whole hundredths, with `missing_gib` more, or a step more where that is unknown;
        None where the device has less."""
        if missing_gib is None:
            more = self.fraction + _A_STEP
        else:
            more = self.fraction + Decimal(missing_gib) * _GIB / self.total_bytes
        wanted = max(more.quantize(_HUNDREDTH, ROUND_CEILING), self.fraction + _HUNDREDTH)
        return wanted if wanted <= 1 else None
