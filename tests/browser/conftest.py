"""A machine with `memoria` on it, as in the integration tests."""

from __future__ import annotations

from tests.integration.conftest import box

__all__ = ["box"]
