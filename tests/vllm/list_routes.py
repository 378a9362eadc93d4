"""Run by vLLM's own interpreter: prints what its application would route, as JSON, in its most generous form.

All tasks, its development mode (VLLM_SERVER_DEV_MODE=1, set by the caller), its docs in both forms: more
than any engine has, so that whatever one could be made to serve is asked for. What a configuration of its
own brings (a profiler, pooling models) is not among them; a running engine's /openapi.json tells of that.
"""

from __future__ import annotations

import json
import sys
from typing import Any, get_args

from vllm.entrypoints.launchers.app import build_app  # type: ignore[import-not-found]
from vllm.entrypoints.launchers.cli_args import make_arg_parser  # type: ignore[import-not-found]
from vllm.tasks import SupportedTask  # type: ignore[import-not-found]
from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]


def tasks(of: Any) -> list[str]:
    """The names in a union of literals."""
    return [name for part in get_args(of) for name in ([part] if isinstance(part, str) else tasks(part))]


def main() -> None:
    parser = make_arg_parser(FlexibleArgumentParser())
    found: set[tuple[str, str]] = set()
    for flags in ([], ["--enable-offline-docs"], ["--enable-fault-tolerance"]):
        app = build_app(parser.parse_args(flags), tuple(tasks(SupportedTask)))
        for route in app.routes:
            # a mount and a WebSocket route have no methods, and are named by what they are
            for method in getattr(route, "methods", None) or [type(route).__name__]:
                found.add((method, route.path))
    json.dump(sorted(found), sys.stdout)


if __name__ == "__main__":
    main()
