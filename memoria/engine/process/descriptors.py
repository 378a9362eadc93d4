"""The limit of open descriptors: as many as the system allows.

Every request is two connections, and a crowd reaches the soft limit that a shell gives (1024, for programs
that use select(2)). An engine gets the limit that memoria was given; vLLM raises its own.
"""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

_LIMIT = resource.RLIMIT_NOFILE
_given = resource.getrlimit(_LIMIT)


def raise_limit() -> None:
    """Raise the soft limit to the hard one (getrlimit(2)), for this process."""
    _, hard = resource.getrlimit(_LIMIT)
    try:
        resource.setrlimit(_LIMIT, (hard, hard))
    except (OSError, ValueError) as error:
        logger.warning("the limit of open files stays as it is: %s", error)


def restore_limit() -> None:
    """For a child, between fork and exec: only a system call."""
    resource.setrlimit(_LIMIT, _given)
