"""A person without root's right to read everything, also where the tests run as root."""

from __future__ import annotations

import os

# The command that starts another one so: root's files stay its own, but their modes count (capabilities(7)).
UNPRIVILEGED: tuple[str, ...] = (
    () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
)
