#define _GNU_SOURCE
#include "load.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { STREAMS = 8192, CONNECTIONS = 16384, AT_ONCE = 8 };

static struct wire *streams[STREAMS];           /* by their numbers */
static struct wire *connections[CONNECTIONS];
static size_t connection_count;
static int burst_at = STREAMS;
static nanoseconds longest_idle;

static const struct iovec NOTHING;

static struct iovec piece(struct text text) { return (struct iovec){(void *)text.at, text.length}; }

/* ---------------------------------------------------------------- streams */

static void forget_stream(struct wire *wire) {
    if (wire->stream >= 0 && streams[wire->stream] == wire)
        streams[wire->stream] = NULL;
    wire->stream = -1;
    wire->finishing = false;
}

static void forget(struct wire *wire) {
    forget_stream(wire);
    connections[wire->slot] = connections[--connection_count];
    connections[wire->slot]->slot = wire->slot;
}

static void drop(struct wire *wire) {
    forget(wire);
    wire_close(wire);
}

static void rest(struct wire *wire) {
    wire->closes_at = longest_idle ? now() + 1 + random() % longest_idle : 0;
    if (wire->close_after)
        drop(wire);
}

static void finish(struct wire *wire) {
    wire->finishing = true;
    if (wire_is_waiting(wire))
        return; /* goes on in on_sent */
    forget_stream(wire);
    wire_send(wire, piece(stream_end), NOTHING, true);
    if (!wire->dead && !wire_is_waiting(wire))
        rest(wire);
}

static void emit(struct wire *wire) {
    if (wire_is_waiting(wire) || wire->finishing)
        return;
    wire_send(wire, piece(content_event(wire->stream, wire->events++)), NOTHING, false);
}

void upstream_emit(int stream) {
    if (streams[stream])
        emit(streams[stream]);
}

bool upstream_burst(bool begin) {
    if (begin)
        burst_at = 0;
    for (int emitted = 0; burst_at < STREAMS && emitted < AT_ONCE; burst_at++)
        if (streams[burst_at]) {
            emit(streams[burst_at]);
            emitted++;
        }
    return burst_at < STREAMS;
}

void upstream_finish(void) {
    burst_at = STREAMS;
    for (int i = 0; i < STREAMS; i++)
        if (streams[i])
            finish(streams[i]);
}

/* ---------------------------------------------------------------- requests */

static void on_head(struct wire *wire) {
    wire->body_length = wire->got = 0;
    wire->upload_right = true;
    wire->closes_at = 0;
}

static void on_body(struct wire *wire, const char *bytes, size_t length) {
    size_t room = sizeof wire->body - 1 - wire->body_length, taken = length < room ? length : room;
    memcpy(wire->body + wire->body_length, bytes, taken);
    wire->body_length += taken;
    wire->upload_right = wire->upload_right && content_is_piece(upload_body, wire->got, bytes, length);
    wire->got += length;
}

static void send_answer(struct wire *wire, const struct answer *answer) {
    size_t length = content_answer_head(wire->answer_head, sizeof wire->answer_head, answer, wire->head);
    wire_send(wire, (struct iovec){wire->answer_head, length}, piece(answer->body), true);
}

static void begin_stream(struct wire *wire) {
    const char *number = strstr(wire->body, "\"stream ");
    int stream = number ? atoi(number + 8) : -1;
    if (stream < 0 || stream >= STREAMS || streams[stream]) {
        send_answer(wire, &wrong_answer);
        return;
    }
    wire->stream = stream;
    wire->events = 0;
    streams[stream] = wire;
    size_t length = content_stream_head(wire->answer_head, sizeof wire->answer_head, wire->head);
    wire_send(wire, (struct iovec){wire->answer_head, length}, NOTHING, true);
    if (!wire->dead)
        emit(wire);
}

static const struct answer *answer(const struct wire *wire) {
    const char *path = strchr(wire->head, ' ');
    if (!path)
        return &wrong_answer;
    path++;
    if (!strncmp(path, "/health", 7))
        return &health_answer;
    if (!strncmp(path, "/v1/completions", 15))
        return &answers[SMALL];
    if (strncmp(path, "/v1/embeddings", 14) != 0)
        return &missing_answer;
    if (wire->got > sizeof wire->body)
        return wire->upload_right && wire->got == upload_body.length ? &answers[UPLOAD] : &wrong_answer;
    return &answers[strstr(wire->body, "a large batch") ? LARGE : EMBEDDING];
}

static void on_message(struct wire *wire) {
    wire->body[wire->body_length] = 0;
    if (strstr(wire->head, " /v1/chat/completions") && strstr(wire->body, "\"stream\":true")) {
        begin_stream(wire);
        return;
    }
    send_answer(wire, answer(wire));
    if (!wire->dead && !wire_is_waiting(wire))
        rest(wire);
}

static void on_sent(struct wire *wire) {
    if (wire->finishing)
        finish(wire);
    else if (wire->stream < 0)
        rest(wire);
}

static const struct role UPSTREAM = {on_head, on_body, on_message, on_sent, forget};

/* ---------------------------------------------------------------- connections */

static void on_connection(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connection_count == CONNECTIONS) {
            close(fd);
            continue;
        }
        struct wire *wire = wire_new(fd, &UPSTREAM);
        wire->slot = connection_count;
        connections[connection_count++] = wire;
    }
}

/* Another process listens, too: each of these connections brings its listening socket (unix(7), SCM_RIGHTS). */
static void on_listener(int passing) {
    union {
        char room[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    char byte;
    struct iovec data = {&byte, sizeof byte};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    int from = accept4(passing, NULL, NULL, 0), listener;
    if (recvmsg(from, &message, 0) > 0 && CMSG_FIRSTHDR(&message)) {
        memcpy(&listener, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof listener);
        fcntl(listener, F_SETFL, O_NONBLOCK);
        watch(listener, on_connection);
    }
    close(from);
}

int upstream_listen(const char *where) {
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd, one = 1, failed;
    bool passing = !strncmp(where, "pass:", 5);
    if (passing || !strncmp(where, "unix:", 5)) {
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        strncpy(local.sun_path, where + 5, sizeof local.sun_path - 1);
        failed = bind(fd, (struct sockaddr *)&local, sizeof local);
    } else {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        address.sin_port = htons((uint16_t)atoi(where + 4));
        failed = bind(fd, (struct sockaddr *)&address, sizeof address);
        getsockname(fd, (struct sockaddr *)&address, &size);
    }
    if (failed || listen(fd, 4096))
        return -1;
    watch(fd, passing ? on_listener : on_connection);
    return ntohs(address.sin_port);
}

void upstream_idle(nanoseconds longest) { longest_idle = longest; }

void upstream_tick(void) {
    if (!longest_idle)
        return;
    nanoseconds time = now();
    for (size_t i = 0; i < connection_count; i++) {
        struct wire *wire = connections[i];
        /* Also when a request is on its way, or is here and unread: as every server does. */
        if (wire->closes_at && time >= wire->closes_at && wire->part == HEAD && wire->stream < 0) {
            drop(wire);
            i--;
        }
    }
}
