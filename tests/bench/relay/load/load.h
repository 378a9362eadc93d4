/* Stub upstream and HTTP client of the relay benchmark, in one thread and one epoll.
 *
 * In one thread, because an event stream is driven in lock step: the upstream writes a stream's next event when
 * the client has read the last one. So exactly one event of each stream is on its way, and a slow proxy cannot
 * gain by sending several in one piece. Times are nanoseconds of CLOCK_MONOTONIC.
 */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

typedef int64_t nanoseconds;

#define MILLISECOND 1000000LL
#define SECOND 1000000000LL

/* ---------------------------------------------------------------- wire.c: connections and HTTP messages */

enum part { HEAD, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

struct wire;

struct role { /* what a connection's events mean to whom it belongs */
    void (*on_head)(struct wire *);                           /* the head is in `head` */
    void (*on_body)(struct wire *, const char *, size_t);     /* a piece of the body, of chunks their data alone */
    void (*on_message)(struct wire *);                        /* the message is complete */
    void (*on_sent)(struct wire *);                           /* all that was waiting is with the kernel */
    void (*on_gone)(struct wire *);                           /* the peer has closed; the wire is dead already */
};

struct wire {
    int fd;
    const struct role *role;
    bool dead, connecting, close_after;
    enum part part;
    char head[8192];
    size_t head_length;
    int64_t left;                                             /* of the body or the chunk */
    struct iovec waiting[2];                                  /* what the kernel has not taken yet */
    char rest[512];                                           /* memory for a `waiting` that would not last */
    nanoseconds since;                                        /* begin of this request, or of the idle time */
    /* upstream */
    char answer_head[512];
    char body[1024];                                          /* the first bytes of a request's body */
    size_t body_length, slot;
    bool upload_right, finishing;
    int stream;                                               /* its number, -1: streams nothing */
    uint64_t events;
    nanoseconds closes_at;                                    /* when idle; 0: never */
    /* client */
    int number, status;
    bool right, first_seen;
    size_t got;                                               /* bytes of the body */
    char event[512];
    size_t event_length;
    nanoseconds asks_at;                                      /* after a pause; 0: it is asking */
    char request[1024];
    size_t request_length;
    struct wire *next;                                        /* among the dead, then among the free */
};

nanoseconds now(void);
struct wire *wire_new(int fd, const struct role *role);
void wire_close(struct wire *wire);
void wire_connecting(struct wire *wire);                      /* `on_sent` when it is connected */
/* Sends two pieces; `lasting` says that their memory may be used until they are gone. */
void wire_send(struct wire *wire, struct iovec first, struct iovec second, bool lasting);
static inline bool wire_is_waiting(const struct wire *wire) {
    return wire->waiting[0].iov_len || wire->waiting[1].iov_len;
}
void wires_poll(int milliseconds);                            /* one round of epoll; calls the roles */
void watch(int fd, void (*ready)(int fd));                    /* for what is no HTTP connection */

/* ---------------------------------------------------------------- content.c: what is asked and answered */

enum what { SMALL, EMBEDDING, LARGE, UPLOAD, STREAM };

struct text {
    const char *at;
    size_t length;
};

struct answer {
    const char *status;
    struct text body;
};

extern struct text answer_bodies[STREAM];
extern struct answer answers[STREAM], health_answer, missing_answer, wrong_answer;
extern struct text upload_body, stream_end;
extern const char DONE[];                                     /* the last event */
extern size_t event_size;                                     /* of one event, not counting the chunk's frame */

void content_build(void);
/* Heads as vLLM writes them; each answers a request's, in which its id is. */
size_t content_answer_head(char *room, size_t size, const struct answer *answer, const char *request);
size_t content_stream_head(char *room, size_t size, const char *request);
/* A chunk with one event that holds the time, in memory that the next call uses again. */
struct text content_event(int stream, uint64_t number);
/* Whether these bytes are an event of that stream and number; `sent` is the time in it. */
bool content_is_event(const char *bytes, int stream, uint64_t number, nanoseconds *sent);
/* Whether a piece that lies at `offset` of a body is right: its length, and both of its ends. */
bool content_is_piece(struct text body, size_t offset, const char *piece, size_t length);

/* ---------------------------------------------------------------- upstream.c */

/* "unix:PATH", "tcp:PORT" (0: any), or "pass:PATH", where others bring sockets that listen; returns the port. */
int upstream_listen(const char *where);
void upstream_idle(nanoseconds longest);                      /* idle connections are closed by then; 0: never */
void upstream_emit(int stream);                               /* the next event of a stream, if it is still there */
bool upstream_burst(bool begin);                              /* a few streams' next events; false: all have had theirs */
void upstream_finish(void);                                   /* ends all streams */
void upstream_tick(void);

/* ---------------------------------------------------------------- client.c */

void client_begin(const char *command);
void client_tick(void);
bool client_is_busy(void);                                    /* the loop must not sleep */
bool client_is_running(void);

#endif
