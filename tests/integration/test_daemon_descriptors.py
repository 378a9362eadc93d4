"""A daemon and its descriptors: how many it may have, and what becomes of it when there are none left."""

from __future__ import annotations

import os
import resource
import signal

from tests.integration.daemon import Box, until

PROMPT = {"model": "writer", "prompt": "a", "max_tokens": 2}


def test_it_may_open_as_many_files_as_the_system_allows_and_its_engines_as_many_as_it_was_given(
    box: Box,
) -> None:
    box.configure()
    box.launcher = ("prlimit", "--nofile=256:4096")
    daemon = box.start()
    daemon.until_ready()
    assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (4096, 4096)
    assert resource.prlimit(daemon.leader("generation"), resource.RLIMIT_NOFILE) == (256, 4096)


def test_without_a_descriptor_left_a_dead_engine_leaves_nothing_and_comes_back_when_there_is_one(
    box: Box,
) -> None:
    box.configure()
    box.vllm.set_faults("generation", grandchild=True)
    daemon = box.start()
    daemon.until_ready()
    core, leader = daemon.core("generation"), daemon.leader("generation")
    (grandchild,) = box.vllm.events("grandchild")
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    os.kill(leader, signal.SIGKILL)
    daemon.told("generation", "releasing")
    until(lambda: core not in box.survivors())
    daemon.signal(signal.SIGHUP)  # a reload, which fails; not the end of a terminal
    daemon.told("memoria", "reload_refused")
    assert daemon.story("failed", "backoff", "stopping") == []
    assert grandchild.pid in box.survivors()
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
    daemon.told("generation", "ready", times=2)
    assert grandchild.pid not in box.survivors()
