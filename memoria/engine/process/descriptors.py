"""The limit of open descriptors, raised to what the system allows.

A request takes two connections, and many clients exhaust the usual soft limit (1024, for the sake of
select(2)). An engine gets the limit that memoria was given; vLLM raises its own.
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
    """Only a system call: runs in a child, between fork and exec."""
    resource.setrlimit(_LIMIT, _given)
