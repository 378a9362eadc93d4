#define _GNU_SOURCE
#include "load.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 64, SCRATCH = 1 << 20, WATCHED = 16 };

static int epoll = -1;
static char *scratch;
static struct wire *unused, *dead;
static struct {
    int fd;
    void (*ready)(int fd);
} watched[WATCHED];
static int watched_count;

nanoseconds now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void add(int fd, uint64_t data) {
    if (epoll < 0) {
        epoll = epoll_create1(0);
        scratch = malloc(SCRATCH);
    }
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = data};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

void watch(int fd, void (*ready)(int fd)) {
    watched[watched_count].fd = fd;
    watched[watched_count].ready = ready;
    add(fd, (uint64_t)watched_count++); /* no pointer is that small */
}

static void want_writable(struct wire *wire, bool wanted) {
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = wire};
    epoll_ctl(epoll, EPOLL_CTL_MOD, wire->fd, &event);
}

struct wire *wire_new(int fd, const struct role *role) {
    struct wire *wire = unused;
    if (wire)
        unused = wire->next;
    else
        wire = malloc(sizeof *wire);
    memset(wire, 0, sizeof *wire);
    wire->fd = fd;
    wire->role = role;
    wire->stream = -1;
    wire->since = now();
    add(fd, (uint64_t)(uintptr_t)wire);
    return wire;
}

void wire_close(struct wire *wire) {
    if (wire->dead)
        return;
    wire->dead = true;
    close(wire->fd);
    wire->next = dead; /* this round of epoll may still name it */
    dead = wire;
}

static void gone(struct wire *wire) {
    if (wire->dead)
        return;
    wire_close(wire);
    wire->role->on_gone(wire);
}

/* ---------------------------------------------------------------- writing */

static void flush(struct wire *wire) {
    if (!wire_is_waiting(wire))
        return;
    ssize_t written = writev(wire->fd, wire->waiting, 2);
    if (written < 0 && errno != EAGAIN) {
        gone(wire);
        return;
    }
    for (int i = 0; i < 2 && written > 0; i++) {
        size_t part = (size_t)written < wire->waiting[i].iov_len ? (size_t)written : wire->waiting[i].iov_len;
        wire->waiting[i].iov_base = (char *)wire->waiting[i].iov_base + part;
        wire->waiting[i].iov_len -= part;
        written -= (ssize_t)part;
    }
}

void wire_send(struct wire *wire, struct iovec first, struct iovec second, bool lasting) {
    wire->waiting[0] = first;
    wire->waiting[1] = second;
    flush(wire);
    if (wire->dead || !wire_is_waiting(wire))
        return;
    if (!lasting) {
        memcpy(wire->rest, wire->waiting[0].iov_base, wire->waiting[0].iov_len);
        wire->waiting[0].iov_base = wire->rest;
    }
    want_writable(wire, true);
}

void wire_connecting(struct wire *wire) {
    wire->connecting = true;
    want_writable(wire, true);
}

static bool has_connected(struct wire *wire) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(wire->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    wire->connecting = false;
    return !error;
}

static void writable(struct wire *wire) {
    if (wire->connecting && !has_connected(wire)) {
        gone(wire);
        return;
    }
    flush(wire);
    if (!wire->dead && !wire_is_waiting(wire)) {
        want_writable(wire, false);
        wire->role->on_sent(wire);
    }
}

/* ---------------------------------------------------------------- reading */

static void head_complete(struct wire *wire) {
    const char *field;
    wire->role->on_head(wire);
    wire->close_after = strcasestr(wire->head, "\nconnection: close") != NULL;
    if ((field = strcasestr(wire->head, "\ntransfer-encoding:")) && strcasestr(field, "chunked")) {
        wire->part = CHUNK_SIZE;
        wire->left = 0;
    } else {
        field = strcasestr(wire->head, "\ncontent-length:");
        wire->left = field ? atoll(field + 16) : 0;
        wire->part = BODY;
    }
}

static void message_complete(struct wire *wire) {
    wire->part = HEAD;
    wire->head_length = 0;
    wire->role->on_message(wire);
}

static size_t read_head(struct wire *wire, const char *bytes, size_t length) {
    size_t before = wire->head_length, room = sizeof wire->head - 1 - before;
    size_t taken = length < room ? length : room;
    memcpy(wire->head + before, bytes, taken);
    wire->head[before + taken] = 0;
    size_t from = before > 3 ? before - 3 : 0;
    char *end = memmem(wire->head + from, before + taken - from, "\r\n\r\n", 4);
    if (!end) {
        wire->head_length += taken;
        if (!room)
            gone(wire);
        return taken;
    }
    size_t size = (size_t)(end - wire->head) + 4;
    wire->head[size] = 0;
    wire->head_length = size;
    head_complete(wire);
    if (wire->part == BODY && wire->left == 0)
        message_complete(wire);
    return size - before;
}

static size_t read_data(struct wire *wire, const char *bytes, size_t length) {
    size_t taken = (int64_t)length < wire->left ? length : (size_t)wire->left;
    wire->left -= (int64_t)taken;
    wire->role->on_body(wire, bytes, taken);
    if (!wire->dead && wire->left == 0) {
        if (wire->part == BODY)
            message_complete(wire);
        else
            wire->part = CHUNK_END;
    }
    return taken;
}

static void read_frame(struct wire *wire, char byte) {
    switch (wire->part) {
    case CHUNK_SIZE:
        if (isxdigit((unsigned char)byte))
            wire->left = wire->left * 16 + (isdigit((unsigned char)byte) ? byte - '0' : (byte | 32) - 'a' + 10);
        else if (byte == '\n' && wire->left)
            wire->part = CHUNK_DATA;
        else if (byte == '\n') {
            wire->part = TRAILER;
            wire->head_length = 0;
        }
        break;
    case CHUNK_END:
        if (byte == '\n') {
            wire->part = CHUNK_SIZE;
            wire->left = 0;
        }
        break;
    default: /* the trailer; head_length counts its line's characters */
        if (byte == '\n' && wire->head_length == 0)
            message_complete(wire);
        else if (byte == '\n')
            wire->head_length = 0;
        else if (byte != '\r')
            wire->head_length++;
    }
}

static void readable(struct wire *wire) {
    ssize_t count = read(wire->fd, scratch, SCRATCH);
    if (count == 0 || (count < 0 && errno != EAGAIN)) {
        gone(wire);
        return;
    }
    const char *bytes = scratch;
    while (count > 0 && !wire->dead) {
        size_t taken = 1;
        if (wire->part == HEAD)
            taken = read_head(wire, bytes, (size_t)count);
        else if (wire->part == BODY || wire->part == CHUNK_DATA)
            taken = read_data(wire, bytes, (size_t)count);
        else
            read_frame(wire, *bytes);
        bytes += taken;
        count -= (ssize_t)taken;
    }
}

void wires_poll(int milliseconds) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll, events, EVENTS, milliseconds);
    for (int i = 0; i < count; i++) {
        if (events[i].data.u64 < WATCHED) {
            watched[events[i].data.u64].ready(watched[events[i].data.u64].fd);
            continue;
        }
        struct wire *wire = events[i].data.ptr;
        if (!wire->dead && events[i].events & EPOLLOUT)
            writable(wire);
        if (!wire->dead && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            readable(wire);
    }
    while (dead) {
        struct wire *wire = dead;
        dead = wire->next;
        wire->next = unused;
        unused = wire;
    }
}
