#define _GNU_SOURCE
#include "load.h"

#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CLIENTS = 8192, SAMPLES = 1 << 22 };
enum stage { IDLE, OPENING, WARMING, MEASURING, ENDING, HELD };

static const nanoseconds WARM_UP = 50 * MILLISECOND, PATIENCE = 20 * SECOND;
static const char *const NAMES[] = {"small", "embedding", "large", "upload", "lockstep", "burst", "hold"};

static struct {
    enum stage stage;
    enum what what;
    bool burst, hold, reconnect;
    int port, connections, at_once, opened, first_seen, finished;
    int64_t requests, begun;                    /* the number wanted, 0: as many as the time allows */
    nanoseconds length, pause, period, began, measured_from, measured_to, next_burst, burst_began;
    int64_t operations, bytes, errors, wrong;
    char trouble[160];
} run;

static struct wire *clients[CLIENTS];
static uint32_t samples[SAMPLES], waits[SAMPLES], firsts[CLIENTS];
static size_t sample_count, wait_count, first_count;

static void client_open(int number);

/* ---------------------------------------------------------------- results */

static int by_size(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static uint32_t clipped(nanoseconds time) { return time > UINT32_MAX ? UINT32_MAX : (uint32_t)time; }

static void print_times(const char *name, uint32_t *times, size_t count) {
    qsort(times, count, sizeof *times, by_size);
    if (!count)
        printf(",\"%s\":null", name);
    else
        printf(",\"%s\":{\"p50\":%.2f,\"p99\":%.2f,\"max\":%.2f}", name, times[count / 2] / 1e3,
               times[(size_t)((double)(count - 1) * 0.99)] / 1e3, times[count - 1] / 1e3);
}

static void report(void) {
    printf("{\"connections\":%d,\"seconds\":%.6f,\"operations\":%lld,\"bytes\":%lld,\"errors\":%lld,\"wrong\":%lld,"
           "\"trouble\":\"%s\"",
           run.opened, (double)(run.measured_to - run.measured_from) / SECOND, (long long)run.operations,
           (long long)run.bytes, (long long)run.errors, (long long)run.wrong, run.trouble);
    print_times("latency_us", samples, sample_count);
    print_times("wait_us", waits, wait_count);
    print_times("first_us", firsts, first_count);
    printf("}\n");
    fflush(stdout);
}

static void note(const char *trouble, int number) {
    if (!*run.trouble)
        snprintf(run.trouble, sizeof run.trouble, "%s (%d)", trouble, number);
}

static void say(const char *moment) {
    printf("%s\n", moment);
    fflush(stdout);
}

/* ---------------------------------------------------------------- one client */

static bool is_over(void) {
    return run.stage >= ENDING || (run.requests && run.begun >= run.requests);
}

static void leave(struct wire *wire) {
    clients[wire->number] = NULL;
    wire_close(wire);
    run.finished++;
}

static void ask(struct wire *wire) {
    wire->since = now();
    wire->asks_at = 0;
    wire->got = wire->event_length = 0;
    wire->right = true;
    run.begun++;
    struct iovec body = {0};
    if (run.what == UPLOAD)
        body = (struct iovec){(void *)upload_body.at, upload_body.length};
    wire_send(wire, (struct iovec){wire->request, wire->request_length}, body, true);
}

static void on_head(struct wire *wire) { wire->status = atoi(wire->head + 9); }

static void got_event(struct wire *wire, const char *bytes) {
    nanoseconds sent, time = now();
    wire->right = wire->right && content_is_event(bytes, wire->number, wire->events++, &sent);
    if (!wire->right)
        return;
    if (!wire->first_seen) {
        wire->first_seen = true;
        run.first_seen++;
        firsts[first_count++] = clipped(time - wire->since);
    }
    if (run.stage == MEASURING) {
        run.operations++;
        if (sample_count < SAMPLES)
            samples[sample_count++] = clipped(time - sent);
        if (run.burst && wait_count < SAMPLES) /* an event may be so late that the next burst has begun */
            waits[wait_count++] = clipped(time - run.burst_began + (sent < run.burst_began ? run.period : 0));
    }
    if (!run.burst && !run.hold && run.stage < ENDING)
        upstream_emit(wire->number);
}

static void stream_body(struct wire *wire, const char *bytes, size_t length) {
    while (length && wire->right) {
        if (!wire->event_length && length >= event_size) {
            got_event(wire, bytes);
            bytes += event_size;
            length -= event_size;
            continue;
        }
        size_t missing = event_size - wire->event_length, taken = length < missing ? length : missing;
        memcpy(wire->event + wire->event_length, bytes, taken);
        wire->event_length += taken;
        bytes += taken;
        length -= taken;
        if (wire->event_length == event_size) {
            wire->event_length = 0;
            got_event(wire, wire->event);
        }
    }
}

static void on_body(struct wire *wire, const char *bytes, size_t length) {
    if (run.stage == MEASURING)
        run.bytes += (int64_t)length;
    if (wire->status != 200)
        return;
    if (run.what == STREAM)
        stream_body(wire, bytes, length);
    else
        wire->right = wire->right && content_is_piece(answer_bodies[run.what], wire->got, bytes, length);
    wire->got += length;
}

static bool is_right(const struct wire *wire) {
    if (wire->status != 200 || !wire->right)
        return false;
    if (run.what != STREAM)
        return wire->got == answer_bodies[run.what].length;
    return wire->event_length == strlen(DONE) && !memcmp(wire->event, DONE, strlen(DONE)) && run.stage >= ENDING;
}

static void on_message(struct wire *wire) {
    if (!is_right(wire)) {
        run.wrong++;
        note("status", wire->status);
    }
    if (run.what != STREAM && run.stage == MEASURING) {
        run.operations++;
        if (run.what == UPLOAD)
            run.bytes += (int64_t)upload_body.length;
        if (sample_count < SAMPLES)
            samples[sample_count++] = clipped(now() - wire->since);
    }
    if (run.what == STREAM || is_over()) {
        leave(wire);
    } else if (run.reconnect) {
        int number = wire->number;
        wire_close(wire);
        client_open(number);
    } else if (run.pause) {
        wire->asks_at = now() + random() % run.pause;
    } else {
        ask(wire);
    }
}

static void on_sent(struct wire *wire) {
    if (wire->asks_at) /* just connected */
        ask(wire);
}

static void on_gone(struct wire *wire) {
    run.errors++;
    note("connection lost", wire->status);
    clients[wire->number] = NULL;
    run.finished++;
}

static const struct role CLIENT = {on_head, on_body, on_message, on_sent, on_gone};

static void write_request(struct wire *wire) {
    static const char *const PATHS[] = {"completions", "embeddings", "embeddings", "embeddings", "chat/completions"};
    static const char *const BODIES[] = {
        "{\"model\":\"generation\",\"prompt\":\"Say something short about proxies.\",\"max_tokens\":16}",
        "{\"model\":\"embedding\",\"input\":\"embed this short sentence\"}",
        "{\"model\":\"embedding\",\"input\":[\"a large batch\"]}",
        "",
        /* the upstream finds the number behind its quotation mark */
        "{\"model\":\"generation\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"stream %06d\"}]}",
    };
    char body[512];
    int length = sprintf(body, BODIES[run.what], wire->number);
    wire->request_length = (size_t)snprintf(
        wire->request, sizeof wire->request,
        "POST /v1/%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: load/1\r\nAccept: */*\r\n"
        "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
        PATHS[run.what], run.port, (size_t)length + (run.what == UPLOAD ? upload_body.length : 0), body);
}

static void client_open(int number) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)run.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct wire *wire = clients[number] = wire_new(fd, &CLIENT);
    wire->number = number;
    wire->asks_at = 1;
    write_request(wire);
    if (!connect(fd, (struct sockaddr *)&address, sizeof address))
        ask(wire);
    else
        wire_connecting(wire);
}

/* ---------------------------------------------------------------- the run */

void client_begin(const char *command) {
    char name[16] = "";
    if (run.stage == HELD) { /* whatever is said next ends it */
        run.stage = ENDING;
        run.measured_to = now();
        upstream_finish();
        return;
    }
    memset(&run, 0, sizeof run);
    sample_count = wait_count = first_count = 0;
    long long milliseconds, pause_us;
    int reconnect;
    if (sscanf(command, "run %15s port=%d connections=%d at_once=%d ms=%lld requests=%" SCNd64 " pause_us=%lld reconnect=%d", name,
               &run.port, &run.connections, &run.at_once, &milliseconds, &run.requests, &pause_us, &reconnect) != 8) {
        say("{\"trouble\":\"unknown command\"}");
        return;
    }
    int kind = 0;
    while (strcmp(name, NAMES[kind]) != 0)
        kind++;
    run.what = kind < STREAM ? (enum what)kind : STREAM;
    run.burst = kind == 5;
    run.hold = kind == 6;
    run.length = milliseconds * MILLISECOND;
    run.pause = pause_us * 1000;
    run.reconnect = reconnect;
    run.period = SECOND / 25; /* decode steps of a mid-size model */
    run.began = now();
    run.stage = OPENING;
}

static void begin_measuring(nanoseconds time) {
    run.stage = MEASURING;
    run.measured_from = run.next_burst = time;
    say("measuring");
}

static void end(nanoseconds time) {
    run.stage = ENDING;
    run.measured_to = time;
    say("measured");
    if (run.what == STREAM)
        upstream_finish();
    for (int i = 0; i < run.opened; i++)
        if (clients[i] && clients[i]->asks_at)
            leave(clients[i]);
}

static void abandon(void) {
    for (int i = 0; i < run.opened; i++)
        if (clients[i]) {
            run.errors++;
            note("unanswered at the end", clients[i]->status);
            leave(clients[i]);
        }
}

static void ask_who_paused(nanoseconds time) {
    for (int i = 0; i < run.opened; i++)
        if (clients[i] && clients[i]->asks_at && !clients[i]->connecting && time >= clients[i]->asks_at) {
            if (is_over())
                leave(clients[i]);
            else
                ask(clients[i]);
        }
}

void client_tick(void) {
    if (run.stage == IDLE || run.stage == HELD)
        return;
    nanoseconds time = now();
    while (run.stage == OPENING && run.opened < run.connections &&
           (run.what != STREAM || run.opened - run.first_seen - run.finished < run.at_once))
        client_open(run.opened++);
    if (run.pause)
        ask_who_paused(time);
    bool all_begun = run.opened == run.connections && (run.what != STREAM || run.first_seen + run.finished >= run.opened);
    if (run.stage == OPENING && (all_begun || time - run.began > PATIENCE)) {
        if (run.hold) {
            run.measured_from = run.began;
            run.measured_to = time;
            run.stage = HELD;
            report();
            return;
        }
        run.stage = WARMING;
        if (run.requests)
            begin_measuring(time);
    }
    if (run.stage == WARMING && time - run.began > WARM_UP)
        begin_measuring(time);
    if (run.stage == MEASURING && run.burst && time >= run.next_burst) {
        run.next_burst += run.period;
        run.burst_began = time;
        upstream_burst(true);
    } else if (run.stage == MEASURING && run.burst) {
        upstream_burst(false);
    }
    bool all_gone = run.finished >= run.opened;
    if (run.stage == MEASURING && (all_gone || (!run.requests && time - run.measured_from >= run.length)))
        end(time);
    if (run.stage == ENDING && (run.finished >= run.opened || time - run.measured_to > PATIENCE / 4)) {
        abandon();
        run.stage = IDLE;
        report();
    }
}

bool client_is_busy(void) { return run.stage != IDLE && run.stage != HELD && (run.burst || run.pause); }

bool client_is_running(void) { return run.stage != IDLE && run.stage != HELD; }
