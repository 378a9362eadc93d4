"""The sections of memoria.yaml: a mapping of known keys each, with bounds, defaults and meanings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from memoria.config import model as facts
from memoria.config.values import (
    Changes,
    Count,
    EngineName,
    Fields,
    LogFormat,
    LogLevel,
    Origins,
    Seconds,
    Weight,
    Word,
)

_TIMEOUTS, _RESTART, _LIMITS, _LOGGING = facts.Timeouts(), facts.Restart(), facts.Limits(), facts.Logging()
_HOLD = facts.Hold()


class Section(BaseModel):
    """A mapping of known keys. A key without a value is unset."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        defer_build=True,  # only the whole file is ever validated; each section by itself would cost 3 ms
    )

    @model_validator(mode="before")
    @classmethod
    def _unset_blanks(cls, data: Any) -> Any:
        if data is None:
            return {}
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


class Timeouts(Section):
    """In seconds."""

    start: Seconds = Field(default=_TIMEOUTS.start, description="From an engine's start until it answers.")
    drain: float = Field(
        default=_TIMEOUTS.drain,
        ge=0,
        allow_inf_nan=False,
        description="For requests in flight before an engine is stopped.",
    )
    stop: Seconds = Field(default=_TIMEOUTS.stop, description="From SIGTERM to SIGKILL.")
    release: Seconds = Field(
        default=_TIMEOUTS.release, description="From an engine's exit until its memory is free again."
    )
    hang: float = Field(
        default=_TIMEOUTS.hang,
        ge=0,
        allow_inf_nan=False,
        description="With requests in flight and no progress in the engine: it hangs, and is restarted; "
        "0: never.",
    )
    idle: Seconds = Field(
        default=_TIMEOUTS.idle,
        description="Longest silence of an engine while it answers; not the length of an answer.",
    )
    connect: Seconds = Field(default=_TIMEOUTS.connect, description="For a connection to an engine.")
    health: Seconds = Field(default=_TIMEOUTS.health, description="For one health check.")


class Restart(Section):
    """Delays in seconds."""

    initial: Seconds = Field(
        default=_RESTART.initial, description="Delay before the first restart; it doubles each time."
    )
    cap: Seconds = Field(default=_RESTART.cap, description="Longest delay between two starts.")
    reset: Seconds = Field(default=_RESTART.reset, description="After so long in service, delays begin anew.")
    attempts: Count = Field(
        default=_RESTART.attempts,
        description="Starts in a row that may fail before an engine that never answered is given up.",
    )


class Limits(Section):
    body_mb: Count = Field(default=_LIMITS.body_bytes >> 20, description="Largest request body, in MiB.")


class Log(Section):
    level: LogLevel = Field(
        default="INFO", description="Least level of memoria's own log; unset: `$LOG_LEVEL`."
    )
    format: LogFormat = Field(
        default=_LOGGING.format, description="Form of memoria's own log; unset: `$LOG_FORMAT`."
    )
    requests: Literal["none", "text", "json"] = Field(
        default=_LOGGING.requests,
        description="Form of the request log, `memoria.requests.log` in `dir`; `none`: there is none.",
    )
    dir: Word | None = Field(
        default=None,
        description="Folder of the engines' logs; unset: `$LOGS_DIRECTORY`, "
        "else `memoria/ID/logs` in `$XDG_STATE_HOME`.",
    )
    max_mb: Count = Field(
        default=_LOGGING.max_bytes >> 20, description="An engine's log is rotated at this size, in MiB."
    )
    keep: Annotated[int, Field(ge=0)] = Field(
        default=_LOGGING.keep, description="Rotated logs kept per engine."
    )


class Cors(Section):
    origins: Origins | None = Field(
        default=None,
        description="Web pages of other origins that may ask, as in `https://app.example.org`; `*` is any.",
    )


class Want(Section):
    """Wishes of one engine."""

    context: Count | None = Field(default=None, description="Tokens of a request, its answer included.")
    concurrency: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=None, description="Such requests at once."
    )
    tokens: Count | None = Field(default=None, description="Tokens in the KV cache, all requests together.")
    weight: Weight | None = Field(
        default=None, description="Share of what the wishes of all engines leave; unset: none."
    )


class Hold(Section):
    """All engines together."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=_HOLD.seconds,
        description="How long a request may wait for an engine that is busy or starts; 0: not at all.",
    )
    requests: Annotated[int, Field(ge=0)] = Field(
        default=_HOLD.requests, description="Most requests that wait."
    )
    bytes: Annotated[int, Field(ge=0)] = Field(
        default=_HOLD.bytes, description="Most bytes of request bodies that wait."
    )


class Guard(Section):
    """Off unless both keys are there."""

    protect: EngineName | None = Field(
        default=None, description="The engine whose latency comes first; unset: no guard."
    )
    inter_token_ms: Seconds | None = Field(
        default=None,
        description="While its tokens come further apart, the others on its GPU get fewer requests at once.",
    )


class Filters(Section):
    """Of one engine."""

    strip: Fields | None = Field(default=None, description="Fields that are left out.")
    set: Changes = Field(default_factory=dict, description="Fields that are set, whatever the client says.")
