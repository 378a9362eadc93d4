/* Commands come as lines on standard input, answers go as lines to standard output:
 *
 *   upstream unix:PATH | tcp:PORT | pass:PATH  {"port": N}   at "pass" others bring sockets that listen
 *   idle MICROSECONDS                          {}   the upstream closes what is idle for a random time up to that
 *   run KIND port=.. connections=.. at_once=.. ms=.. requests=.. pause_us=.. reconnect=..
 *        measuring | measured                  at the ends of the measured time
 *        {...}                                 the result; times in microseconds: `latency_us` from when the
 *                                              upstream wrote, `wait_us` of an event from its burst's begin
 *   KIND is small, embedding, large, upload (one request after another on each connection), lockstep, burst
 *   (event streams), or hold: streams that are opened, `at_once` of them without a first event at a time, and
 *   stay until `end`, which has no more than the result that follows.
 */
#define _GNU_SOURCE
#include "load.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void obey(char *line) {
    if (!strncmp(line, "upstream ", 9)) {
        printf("{\"port\":%d}\n", upstream_listen(line + 9));
        fflush(stdout);
    } else if (!strncmp(line, "idle ", 5)) {
        upstream_idle(atoll(line + 5) * 1000);
        printf("{}\n");
        fflush(stdout);
    } else {
        client_begin(line);
    }
}

static void on_command(int fd) {
    static char buffer[1024];
    static size_t length;
    ssize_t count = read(fd, buffer + length, sizeof buffer - 1 - length);
    if (count <= 0)
        exit(0);
    length += (size_t)count;
    buffer[length] = 0;
    char *line = buffer, *newline;
    while ((newline = strchr(line, '\n'))) {
        *newline = 0;
        obey(line);
        line = newline + 1;
    }
    length = strlen(line);
    memmove(buffer, line, length);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    content_build();
    watch(STDIN_FILENO, on_command);
    for (;;) {
        wires_poll(client_is_busy() ? 0 : client_is_running() ? 1 : -1);
        upstream_tick();
        client_tick();
    }
}
