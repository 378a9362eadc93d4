"""Faults of engines, of the GPU, and of the daemon itself."""

from __future__ import annotations

from tests.faults.row import DAEMON, FAULTS, REAL, UNIT, Row

ROWS = (
    Row(
        1,
        "SIGKILL an API server",
        "its engine core dies too, restart, neighbour untouched",
        (
            f"{DAEMON}crashes.py::test_a_killed_leader_takes_its_core_along_and_is_started_again",
            f"{REAL}survival.py::test_a_killed_process_brings_its_engine_back_and_leaves_the_neighbour_alone",
            f"{FAULTS}campaigns.py::test_a_hundred_killed_processes_cost_the_neighbour_nothing",
            f"{FAULTS}campaigns.py::test_ten_killed_processes_of_a_real_engine_cost_the_neighbour_nothing",
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
            f"{REAL}survival.py::test_nothing_is_left_after_the_daemon_was_killed_while_they_start",
            f"{REAL}survival.py::test_nothing_is_left_after_the_daemon_was_killed_at_work",
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
            f"{REAL}survival.py::test_a_frozen_engine_core_is_found_and_followed",
            f"{REAL}survival.py::test_a_frozen_engine_core_is_found_at_default_settings",
        ),
        starred=True,
    ),
    Row(
        4,
        "busy engine, slow `/health`",
        "no restart",
        (
            f"{FAULTS}saturation.py::test_saturated_engines_are_not_taken_for_hung",
            f"{FAULTS}saturation.py::test_saturated_real_engines_are_not_taken_for_hung",
            f"{DAEMON}hangs.py::test_a_core_that_goes_on_in_time_is_not_restarted",
            f"{DAEMON}hangs.py::test_a_slow_answer_that_makes_tokens_is_no_hang",
            f"{DAEMON}hangs.py::test_a_long_prefill_that_fills_the_cache_is_no_hang",
            f"{DAEMON}hangs.py::test_a_prefill_that_fills_nothing_is_suspected",
            f"{DAEMON}hangs.py::test_figures_that_come_late_are_no_hang",
            f"{DAEMON}hangs.py::test_health_that_never_comes_is_no_hang",
            f"{UNIT}engine_liveness.py::test_a_long_prefill_that_fills_the_cache_is_no_hang",
            f"{UNIT}engine_liveness.py::test_time_without_requests_neither_counts_nor_excuses",
            f"{UNIT}engine_liveness.py::test_without_figures_nothing_is_held_against_an_engine",
            f"{UNIT}engine_liveness.py::test_only_seconds_with_requests_and_without_movement_add_up",
        ),
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
            f"{UNIT}engine_actor.py::test_an_hour_of_ready_makes_the_next_delay_the_first_again",
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
            f"{DAEMON}stop.py::test_an_engine_that_is_stopped_while_it_starts_leaves_nothing",
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
        (
            f"{DAEMON}stop.py::test_a_process_that_a_killed_daemon_left_is_killed_and_reported",
            f"{UNIT}supervisor_state.py::test_a_leftover_is_found_verified_and_removed",
            f"{UNIT}supervisor_state.py::test_its_group_is_removed_with_it",
            f"{UNIT}supervisor_state.py::test_the_next_daemon_removes_and_tells",
        ),
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
            f"{FAULTS}daemon.py::test_an_engine_that_dies_while_the_driver_hangs_waits_for_it",
            f"{UNIT}supervisor_memory.py::test_a_driver_that_hangs_is_told_and_not_asked_a_second_time",
        ),
        none="failures",
    ),
    Row(
        20,
        "invalid reload",
        "old configuration kept",
        (
            f"{DAEMON}reload.py::test_what_is_wrong_changes_nothing_and_is_told",
            f"{DAEMON}reload.py::test_a_taken_port_changes_nothing",
            f"{FAULTS}reloads.py::test_reloads_that_are_refused_drop_nothing",
        ),
        none="drops",
    ),
    Row(
        21,
        "reload, one engine changed",
        "the other's process untouched",
        (
            f"{DAEMON}reload.py::test_only_the_changed_engine_restarts",
            f"{DAEMON}reload.py::test_requests_across_a_reload_are_held",
            f"{FAULTS}reloads.py::test_reloads_that_restart_an_engine_fail_nothing",
        ),
        none="failures",
    ),
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
)
