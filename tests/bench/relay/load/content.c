#define _GNU_SOURCE
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* In the shape and size of vLLM's own: 284 bytes, 13 KB (1024 dimensions), 5 MB (400 of them), 8 MB to embed. */
enum { DIMENSIONS = 1024, BATCH = 400, UPLOAD_SIZE = 8 << 20, EDGE = 64, TIME_DIGITS = 19, STREAM_DIGITS = 6,
       NUMBER_DIGITS = 8 };

struct text answer_bodies[STREAM];
struct answer answers[STREAM], health_answer, missing_answer, wrong_answer;
struct text upload_body, stream_end;
const char DONE[] = "data: [DONE]\n\n";
size_t event_size;

static char event[512];
static size_t event_length, event_begin, time_at, stream_at, number_at;

static struct text text(const char *bytes) { return (struct text){bytes, strlen(bytes)}; }

/* The id of the request: --enable-request-id-headers. */
static size_t write_head(char *room, size_t size, const char *status, const char *fields, const char *request,
                         const char *framing) {
    const char *id = strcasestr(request, "\nx-request-id: ");
    id = id ? id + 15 : "0123456789abcdef0123456789abcdef\r";
    return (size_t)snprintf(room, size,
                            "HTTP/1.1 %s\r\ndate: Mon, 23 Nov 2026 08:00:00 GMT\r\nserver: uvicorn\r\n%s"
                            "vary: Origin\r\nx-request-id: %.*s\r\n%s\r\n",
                            status, fields, (int)strcspn(id, "\r"), id, framing);
}

size_t content_answer_head(char *room, size_t size, const struct answer *answer, const char *request) {
    char fields[128];
    snprintf(fields, sizeof fields, "content-length: %zu\r\ncontent-type: application/json\r\n", answer->body.length);
    return write_head(room, size, answer->status, fields, request, "");
}

size_t content_stream_head(char *room, size_t size, const char *request) {
    return write_head(room, size, "200 OK", "content-type: text/event-stream; charset=utf-8\r\n", request,
                      "transfer-encoding: chunked\r\n");
}

static struct text embeddings(int count) {
    char *bytes = malloc((size_t)count * DIMENSIONS * 16 + 1024), *end = bytes;
    uint32_t random = 12345;
    end += sprintf(end, "{\"id\":\"embd-0\",\"object\":\"list\",\"created\":1700000000,\"model\":\"embedding\",\"data\":[");
    for (int i = 0; i < count; i++) {
        end += sprintf(end, "%s{\"index\":%d,\"object\":\"embedding\",\"embedding\":[", i ? "," : "", i);
        for (int j = 0; j < DIMENSIONS; j++) {
            random = random * 1664525u + 1013904223u;
            end += sprintf(end, "%s%s0.0%08u", j ? "," : "", random >> 31 ? "-" : "", (random >> 4) % 100000000u);
        }
        end += sprintf(end, "]}");
    }
    end += sprintf(end, "],\"usage\":{\"prompt_tokens\":8,\"total_tokens\":8,\"completion_tokens\":0}}");
    return (struct text){bytes, (size_t)(end - bytes)};
}

static struct text upload(void) {
    char *bytes = malloc(UPLOAD_SIZE + 1);
    int begin = sprintf(bytes, "{\"model\":\"embedding\",\"input\":[\"");
    uint32_t random = 54321;
    for (int i = begin; i < UPLOAD_SIZE; i++) {
        random = random * 1664525u + 1013904223u;
        bytes[i] = (char)('a' + (random >> 24) % 26);
    }
    for (int i = begin + 1000; i + 1000 < UPLOAD_SIZE; i += 1000)
        memcpy(bytes + i, "\",\"", 3);
    memcpy(bytes + UPLOAD_SIZE - 3, "\"]}", 3);
    return (struct text){bytes, UPLOAD_SIZE};
}

static void build_event(void) {
    char payload[400];
    event_size = (size_t)sprintf(
        payload,
        "data: {\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\","
        "\"created\":1700000000,\"model\":\"generation\",\"choices\":[{\"index\":0,\"delta\":{\"content\":"
        "\"@%0*d;%0*d;%0*d\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n",
        TIME_DIGITS, 0, STREAM_DIGITS, 0, NUMBER_DIGITS, 0);
    event_begin = (size_t)sprintf(event, "%zx\r\n", event_size);
    event_length = event_begin + (size_t)sprintf(event + event_begin, "%s\r\n", payload);
    time_at = (size_t)(strchr(payload, '@') - payload) + 1;
    stream_at = time_at + TIME_DIGITS + 1;
    number_at = stream_at + STREAM_DIGITS + 1;
}

void content_build(void) {
    static char end[64];
    answer_bodies[SMALL] = text(
        "{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\",\"created\":1700000000,"
        "\"model\":\"generation\",\"choices\":[{\"index\":0,\"text\":\" a completion of a few words\",\"logprobs\":null,"
        "\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":8,\"total_tokens\":24,\"completion_tokens\":16}}");
    answer_bodies[EMBEDDING] = answer_bodies[UPLOAD] = embeddings(1);
    answer_bodies[LARGE] = embeddings(BATCH);
    for (int what = SMALL; what < STREAM; what++)
        answers[what] = (struct answer){"200 OK", answer_bodies[what]};
    health_answer = (struct answer){"200 OK", text("{}")};
    missing_answer = (struct answer){"404 Not Found", text("{\"detail\":\"Not Found\"}")};
    wrong_answer = (struct answer){"400 Bad Request", text("{\"detail\":\"this is not what was sent\"}")};
    sprintf(end, "%zx\r\n%s\r\n0\r\n\r\n", strlen(DONE), DONE);
    stream_end = text(end);
    upload_body = upload();
    build_event();
}

static void write_number(char *digits, int count, int64_t value) {
    while (count--) {
        digits[count] = (char)('0' + value % 10);
        value /= 10;
    }
}

static int64_t read_number(const char *digits, int count) {
    int64_t value = 0;
    for (int i = 0; i < count; i++)
        value = value * 10 + (digits[i] - '0');
    return value;
}

struct text content_event(int stream, uint64_t number) {
    write_number(event + event_begin + time_at, TIME_DIGITS, now());
    write_number(event + event_begin + stream_at, STREAM_DIGITS, stream);
    write_number(event + event_begin + number_at, NUMBER_DIGITS, (int64_t)number);
    return (struct text){event, event_length};
}

bool content_is_event(const char *bytes, int stream, uint64_t number, nanoseconds *sent) {
    *sent = read_number(bytes + time_at, TIME_DIGITS);
    size_t tail = number_at + NUMBER_DIGITS;
    return read_number(bytes + stream_at, STREAM_DIGITS) == stream &&
           (uint64_t)read_number(bytes + number_at, NUMBER_DIGITS) == number &&
           !memcmp(bytes, event + event_begin, time_at) &&
           !memcmp(bytes + tail, event + event_begin + tail, event_size - tail);
}

bool content_is_piece(struct text body, size_t offset, const char *piece, size_t length) {
    size_t edge = length < EDGE ? length : EDGE;
    return offset + length <= body.length && !memcmp(body.at + offset, piece, edge) &&
           !memcmp(body.at + offset + length - edge, piece + length - edge, edge);
}
