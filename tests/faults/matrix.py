"""Row by row: the fault, what must happen, and the tests that inject it (test_matrix.py holds them to exist).

A figure is either measured by a test (the fixture `figure`), or it is a count that the row's tests assert to
be nought: `none` names what there was none of, and is reported when all of them passed.
"""

from __future__ import annotations

from dataclasses import dataclass

DAEMON = "tests/integration/test_daemon_"
FAULTS = "tests/faults/test_"
PROXY = "tests/integration/test_proxy_"
REAL = "tests/vllm/test_"
UNIT = "tests/unit/test_"


@dataclass(frozen=True, slots=True)
class Row:
    """`starred`: one of those that matter most, so at least one of its tests runs with the whole suite."""

    number: int
    fault: str
    expected: str
    tests: tuple[str, ...]
    none: str = ""
    starred: bool = False


# What daemon and tests do not do yet: their tests are named where they are known, and need not be there.
NOT_YET = frozenset({3, 17, 20, 21})

ROWS = (
    Row(
        1,
        "SIGKILL an API server",
        "its engine core dies too, restart, neighbour untouched",
        (
            f"{DAEMON}crashes.py::test_a_killed_leader_takes_its_core_along_and_is_started_again",
            f"{REAL}survival.py::test_a_killed_process_brings_its_engine_back_and_leaves_the_neighbour_alone",
            f"{FAULTS}campaigns.py::test_a_hundred_killed_processes_cost_the_neighbour_nothing",
        ),
        none="survivors",
        starred=True,
    ),
    Row(
        2,
        "SIGKILL the supervisor",
        "no survivors",
        (
            f"{DAEMON}stop.py::test_no_engine_outlives_a_killed_daemon_and_the_next_start_is_clean",
            f"{DAEMON}stop.py::test_no_engine_outlives_a_daemon_that_is_killed_while_they_start",
            f"{REAL}survival.py::test_nothing_is_left_after_the_daemon_was_killed",
            f"{FAULTS}campaigns.py::test_fifty_killed_daemons_leave_nothing",
        ),
        none="survivors",
        starred=True,
    ),
    Row(
        3,
        "EngineCore frozen, `/health` 200",
        "suspect, then restart",
        (
            f"{DAEMON}hangs.py::test_a_frozen_core_is_found_and_its_neighbour_is_left_alone",
            f"{REAL}survival.py::test_a_frozen_engine_core_is_found_and_its_engine_restarted",
        ),
        starred=True,
    ),
    Row(
        4,
        "busy engine, slow `/health`",
        "no restart",
        (f"{FAULTS}engines.py::test_a_busy_engine_with_a_slow_health_is_left_alone",),
        none="false kills",
        starred=True,
    ),
    Row(
        5,
        "GPU memory lingers after a death",
        "the next start waits",
        (
            f"{DAEMON}gate.py::test_nothing_starts_while_a_dead_engines_memory_lingers",
            f"{DAEMON}gate.py::test_memory_that_never_comes_back_holds_the_device_until_it_does",
        ),
        none="early starts",
        starred=True,
    ),
    Row(
        6,
        "two engines die together",
        "serial starts",
        (f"{DAEMON}gate.py::test_two_engines_that_die_together_start_one_after_the_other",),
        none="overlaps",
        starred=True,
    ),
    Row(
        7,
        "crash loop",
        "backoff, then failed, reason shown",
        (
            f"{DAEMON}crashes.py::test_an_engine_that_never_gets_ready_is_given_up_with_its_reason",
            f"{UNIT}engine_lifecycle.py::test_delays_double_up_to_the_cap",
            f"{FAULTS}engines.py::test_a_crash_loop_backs_off_and_ends_with_its_reason",
        ),
    ),
    Row(
        8,
        "crash after an hour of ready",
        "the counter was reset",
        (
            f"{UNIT}engine_lifecycle.py::test_a_long_time_of_ready_begins_the_delays_anew",
            f"{UNIT}engine_lifecycle.py::test_a_time_of_ready_gives_all_attempts_back",
        ),
        none="delays longer than the first",
    ),
    Row(
        9,
        "leader exits, child stays",
        "group killed",
        (f"{FAULTS}engines.py::test_a_leader_that_ends_by_itself_leaves_no_child",),
        none="survivors",
    ),
    Row(
        10,
        "child that forked twice and called setsid",
        "found and killed",
        (
            f"{DAEMON}crashes.py::test_a_process_that_left_its_group_dies_with_its_engine",
            f"{UNIT}engine_process.py::test_a_child_that_left_the_session_is_found_by_its_marker_and_killed",
        ),
        none="survivors",
    ),
    Row(
        11,
        "SIGTERM ignored",
        "SIGKILL after the grace",
        (
            f"{DAEMON}stop.py::test_an_engine_that_ignores_sigterm_is_killed_after_the_grace",
            f"{UNIT}engine_process.py::test_a_leader_that_ignores_sigterm_is_killed",
        ),
    ),
    Row(
        12,
        "hang while loading",
        "start timeout",
        (f"{DAEMON}crashes.py::test_a_start_that_hangs_is_ended_by_its_timeout",),
    ),
    Row(
        13,
        "stop during a start",
        "clean",
        (
            f"{DAEMON}stop.py::test_a_stop_during_a_start_leaves_nothing",
            f"{FAULTS}campaigns.py::test_a_stop_under_load_lets_everything_finish",
        ),
        none="leaks",
    ),
    Row(
        14,
        "host OOM killer takes an engine",
        "neighbour and daemon live",
        (
            f"{DAEMON}crashes.py::test_a_dead_core_leaves_the_neighbours_streams_alone",
            f"{REAL}survival.py::test_a_killed_process_brings_its_engine_back_and_leaves_the_neighbour_alone",
        ),
        none="503s to the neighbour",
    ),
    Row(
        15,
        "supervisor's loop blocked",
        "watchdog restart",
        (
            f"{DAEMON}systemd.py::test_systemd_hears_of_readiness_progress_life_and_the_end",
            f"{FAULTS}daemon.py::test_a_blocked_daemon_misses_its_watchdog_and_is_replaced",
        ),
        none="survivors",
    ),
    Row(
        16,
        "stale orphan at start",
        "found, killed, reported",
        (f"{DAEMON}stop.py::test_a_process_that_a_killed_daemon_left_is_killed_and_reported",),
        none="wrong kills",
    ),
    Row(
        17,
        "process id reused in the state file",
        "not killed",
        (
            f"{UNIT}supervisor_state.py::test_a_process_id_that_changed_hands_is_not_touched",
            f"{UNIT}supervisor_state.py::test_a_process_of_another_boot_is_not_touched",
        ),
        none="wrong kills",
    ),
    Row(
        18,
        "port or socket taken",
        "clear failure naming the holder",
        (
            "tests/integration/test_cli_bad_input.py::test_a_port_in_use_names_its_holder",
            f"{DAEMON}serving.py::test_a_second_daemon_with_the_same_configuration_is_refused",
            f"{UNIT}listen.py::test_all_taken_ports_are_told_at_once_and_no_other_is_kept",
            f"{UNIT}listen.py::test_an_admin_socket_that_cannot_be_made_is_told_with_the_reason",
        ),
    ),
    Row(
        19,
        "NVML hangs or errors while serving",
        "proxy unaffected",
        (
            f"{FAULTS}daemon.py::test_a_driver_that_hangs_or_fails_does_not_touch_the_proxy",
            f"{UNIT}supervisor_memory.py::test_a_driver_that_hangs_is_told_and_not_asked_a_second_time",
        ),
        none="failures",
    ),
    Row(20, "invalid reload", "old configuration kept", (), none="drops"),
    Row(21, "reload, one engine changed", "the other's process untouched", (), none="failures"),
    Row(
        22,
        "disk full",
        "serving continues",
        (
            f"{FAULTS}daemon.py::test_a_full_disk_stops_neither_engines_nor_requests",
            f"{FAULTS}daemon.py::test_a_log_that_takes_no_byte_more_stops_nothing",
        ),
        none="failures",
    ),
    Row(
        23,
        "10 MB/s on stderr",
        "no stall, bounded disk",
        (f"{FAULTS}engines.py::test_an_engine_that_floods_its_log_neither_stalls_nor_fills_the_disk",),
    ),
    Row(
        24,
        "client leaves before the first byte",
        "upstream aborted",
        (
            f"{PROXY}faults.py::test_a_client_that_leaves_before_the_first_byte_aborts_its_request",
            f"{PROXY}faults.py::test_a_half_close_counts_as_leaving",
            f"{REAL}front_door.py::test_a_client_that_leaves_ends_its_request_in_the_engine",
            f"{FAULTS}clients.py::test_clients_that_leave_are_seen_leaving_by_the_engine",
        ),
        starred=True,
    ),
    Row(
        25,
        "client leaves mid-stream",
        "upstream aborted",
        (
            f"{PROXY}faults.py::test_a_client_that_leaves_in_mid_stream_aborts_its_request",
            f"{REAL}front_door.py::test_a_client_that_leaves_ends_its_request_in_the_engine",
            f"{FAULTS}clients.py::test_clients_that_leave_are_seen_leaving_by_the_engine",
        ),
    ),
    Row(
        26,
        "engine dies mid-stream",
        "error event, no `[DONE]`",
        (
            f"{PROXY}faults.py::test_an_engine_that_dies_in_mid_stream_leaves_an_error_event_and_no_end",
            f"{PROXY}faults.py::test_the_error_event_stands_alone_after_half_an_event",
            f"{FAULTS}engines.py::test_a_stream_of_an_engine_that_vanishes_ends_with_an_error",
            f"{FAULTS}campaigns.py::test_a_hundred_killed_processes_cost_the_neighbour_nothing",
        ),
        none="silent truncations",
        starred=True,
    ),
    Row(
        27,
        "engine dies mid JSON body",
        "connection error, no false 200 end",
        (
            f"{PROXY}faults.py::test_an_engine_that_dies_in_a_json_body_leaves_no_false_end",
            f"{FAULTS}engines.py::test_half_a_json_body_is_no_answer",
        ),
        none="false ends",
    ),
    Row(
        28,
        "embeddings across a restart",
        "held and replayed",
        (
            f"{DAEMON}crashes.py::test_a_request_to_an_engine_that_restarts_is_held_until_it_is_ready",
            f"{PROXY}front.py::test_an_embedding_is_held_and_asked_again_when_its_engine_dies",
            f"{FAULTS}campaigns.py::test_embeddings_outlast_twenty_restarts",
        ),
        none="failed embeddings",
    ),
    Row(
        29,
        "keep-alive race",
        "none visible",
        (
            f"{PROXY}faults.py::test_a_kept_connection_that_the_engine_gave_up_is_replaced_unseen",
            f"{FAULTS}clients.py::test_connections_that_engines_close_at_any_moment_cost_no_request",
        ),
        none="502s",
    ),
    Row(
        30,
        "200 readers that read nothing",
        "bounded memory, cut at 60 s",
        (
            f"{PROXY}stalls.py::test_a_reader_that_takes_nothing_stops_its_engine_and_is_cut",
            f"{FAULTS}clients.py::test_many_readers_that_take_nothing_are_all_cut",
            f"{FAULTS}crowd.py::test_a_crowd_that_stalls_costs_others_nothing",
        ),
        starred=True,
    ),
    Row(
        31,
        "1000 partial headers",
        "closed after 10 s",
        (
            f"{FAULTS}clients.py::test_heads_that_never_end_are_closed_and_others_answered",
            f"{FAULTS}crowd.py::test_a_crowd_that_stalls_costs_others_nothing",
        ),
        starred=True,
    ),
    Row(
        32,
        "huge, lying or chunked bodies",
        "413 / 400",
        (
            f"{PROXY}smuggling.py::test_a_body_declared_too_large_is_a_413_at_once",
            f"{PROXY}smuggling.py::test_a_chunked_body_is_counted_while_it_streams",
            f"{PROXY}smuggling.py::test_the_largest_body_allowed_passes",
            f"{PROXY}stalls.py::test_a_client_that_stops_uploading_is_a_408_and_not_the_engines_fault",
            f"{FAULTS}clients.py::test_bodies_past_the_limit_take_no_memory",
        ),
    ),
    Row(
        33,
        "malformed and smuggling requests",
        "400, never two upstream requests",
        (
            f"{PROXY}smuggling.py::test_an_ambiguous_request_is_a_400_and_never_a_request_to_an_engine",
            f"{PROXY}smuggling.py::test_nothing_is_asked_of_an_engine_after_a_refused_head",
            f"{PROXY}smuggling.py::test_an_absolute_target_is_forwarded_as_a_path_with_our_host",
            f"{PROXY}smuggling.py::test_headers_that_are_not_for_an_engine_stay_here",
            f"{FAULTS}fuzz_requests.py::test_whatever_a_client_sends_an_engine_reads_what_memoria_meant",
            f"{FAULTS}fuzz_requests.py::test_a_request_is_read_alike_after_one_that_it_resembles",
        ),
        none="desyncs",
        starred=True,
    ),
    Row(
        34,
        "`//`, `%2e`, `%2f`, `\\` in the path",
        "404, not forwarded",
        (f"{PROXY}smuggling.py::test_a_path_in_disguise_is_not_forwarded",),
        none="leaks",
    ),
    Row(
        35,
        "DNS rebinding, foreign Origin",
        "403/421",
        (
            f"{FAULTS}web_pages.py::test_another_name_than_its_own_is_misdirected",
            f"{FAULTS}web_pages.py::test_a_page_of_another_site_is_refused",
            f"{FAULTS}web_pages.py::test_a_page_cannot_send_what_a_browser_lets_it_send_unasked",
            f"{PROXY}front.py::test_a_name_that_is_not_ours_is_misdirected",
            f"{PROXY}front.py::test_a_page_of_another_site_is_refused_and_a_listed_one_may_read_the_answer",
        ),
        none="bypasses",
        starred=True,
    ),
    Row(
        36,
        "every route vLLM has",
        "denied unless listed",
        (
            f"{REAL}front_door.py::test_every_route_of_the_engine_that_is_not_in_the_table_is_denied",
            f"{DAEMON}serving.py::test_what_steers_an_engine_does_not_exist",
        ),
        none="exposed routes",
    ),
    Row(
        37,
        "CR, LF, ANSI in model or path",
        "escaped in logs",
        (
            f"{FAULTS}secrets.py::test_what_a_client_writes_cannot_forge_a_line_of_the_log",
            f"{UNIT}logs.py::test_a_foreign_text_can_neither_forge_a_line_nor_move_the_cursor",
        ),
        none="injections",
    ),
    Row(
        38,
        "secrets (keys, HF_TOKEN)",
        "not in argv, logs, status, errors",
        (
            f"{FAULTS}secrets.py::test_a_secret_stays_where_it_belongs",
            f"{UNIT}config_load.py::test_a_secret_out_of_a_variable_is_not_repeated",
            f"{UNIT}proxy_keys.py::test_nothing_shows_a_key",
        ),
        none="hits",
    ),
    Row(
        39,
        "redirects, cookies, bad headers from upstream",
        "not followed, dropped",
        (
            f"{FAULTS}clients.py::test_a_redirect_is_not_followed_and_shows_no_engine",
            f"{PROXY}relay.py::test_headers_that_are_not_for_the_client_stay_here",
            f"{PROXY}faults.py::test_a_response_that_is_no_http_is_a_502",
        ),
        none="leaks",
    ),
    Row(
        40,
        "soak with random kills",
        "flat",
        (f"{FAULTS}soak.py::test_two_minutes_of_everything_leave_no_trace",),
    ),
)
