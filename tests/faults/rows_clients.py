"""Faults of clients, of connections, and of what is said over them."""

from __future__ import annotations

from tests.faults.row import DAEMON, FAULTS, PROXY, REAL, UNIT, Row

ROWS = (
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
            f"{REAL}survival.py::test_a_stream_of_a_killed_engine_ends_in_an_error",
            f"{FAULTS}campaigns.py::test_a_hundred_killed_processes_cost_the_neighbour_nothing",
            f"{FAULTS}campaigns.py::test_ten_killed_processes_of_a_real_engine_cost_the_neighbour_nothing",
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
            f"{DAEMON}crashes.py::test_an_engine_whose_core_is_dead_is_asked_nothing_more",
            f"{PROXY}front.py::test_an_embedding_is_held_and_asked_again_when_its_engine_dies",
            f"{FAULTS}campaigns.py::test_embeddings_outlast_twenty_planned_restarts",
        ),
        none="failed embeddings",
    ),
    Row(
        29,
        "keep-alive race",
        "none visible",
        (
            f"{PROXY}races.py::test_it_closes_in_the_moment_that_the_client_asks",
            f"{PROXY}races.py::test_it_closes_before_the_request_is_written",
            f"{PROXY}races.py::test_it_closes_with_the_request_unread",
            f"{PROXY}races.py::test_it_closes_with_half_of_the_request_read",
            f"{PROXY}races.py::test_it_closes_with_the_request_read",
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
            f"{FAULTS}crowd.py::test_a_crowd_that_stalls_is_cut_in_time",
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
            f"{FAULTS}crowd.py::test_a_crowd_that_stalls_is_cut_in_time",
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
            f"{REAL}front_door.py::test_every_route_of_vllm_that_is_not_in_the_table_is_denied",
            f"{DAEMON}serving.py::test_what_controls_an_engine_does_not_exist",
        ),
        none="exposed routes",
    ),
    Row(
        37,
        "CR, LF, ANSI in model or path",
        "escaped in logs",
        (
            f"{FAULTS}secrets.py::test_what_a_client_writes_cannot_forge_a_line_of_the_log",
            f"{UNIT}test_logs.py::test_a_foreign_text_can_neither_forge_a_line_nor_move_the_cursor",
        ),
        none="injections",
    ),
    Row(
        38,
        "secrets (keys, HF_TOKEN)",
        "not in argv, logs, status, errors",
        (
            f"{FAULTS}secrets.py::test_a_secret_stays_where_it_belongs",
            f"{UNIT}config/test_load.py::test_a_secret_out_of_a_variable_is_not_repeated",
            f"{UNIT}proxy/test_keys.py::test_nothing_shows_a_key",
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
