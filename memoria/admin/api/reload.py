"""`POST /reload` on the admin socket reads the configuration again; with `?dry_run=true` it only says what
would happen."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import asdict
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from memoria.admin.api.replies import flag
from memoria.errors import MemoriaError


class Outcome(Protocol):
    def to_json(self) -> dict[str, Any]: ...


class Reload(Protocol):
    def __call__(self, *, dry_run: bool) -> Awaitable[Outcome]:
        """Raises `MemoriaError` when nothing has changed."""
        ...


def routes(reload: Reload) -> list[Route]:
    """200 with what changed; 422 with the problems and the exit code that they mean."""

    async def answer(request: Request) -> JSONResponse:
        try:
            outcome = await reload(dry_run=flag(request, "dry_run"))
        except MemoriaError as error:
            problems = [asdict(problem) for problem in error.problems]
            return JSONResponse({"exit_code": int(error.exit_code), "problems": problems}, 422)
        return JSONResponse(outcome.to_json())

    return [Route("/reload", answer, methods=["POST"])]
