/* The HTTP face over an engine of this test's own (the gw_engine_* calls are wrapped): routes,
 * guards, waiting, streaming, clients that go away, a drain. The main thread is the client and
 * plays the engine thread. Argument: a model directory with spiece.model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/lock.h"
#include "gpu-worker/serve/http.h"

enum { MAX_SEQUENCES = 80, PATIENCE_MS = 5000, RESPONSE_BYTES = 1 << 16 };

static gw_tokenizer *tokenizer;

/* ---- the engine ---- */

typedef struct sequence {
    gw_request request; /* input_ids: not kept */
    uint32_t n_tokens;
    bool cancelled, done;
} sequence;

static struct {
    moe_mutex mu;
    sequence sequences[MAX_SEQUENCES]; /* guarded by mu; id = index + 1 */
    uint32_t n;                        /* guarded by mu */
    uint32_t queue;                    /* submits that still succeed; guarded by mu */
    gw_engine_state state;
} fake;

moe_status __wrap_gw_engine_submit(gw_engine *e, const gw_request *r, uint64_t *out_id,
                                   moe_err *err);
void __wrap_gw_engine_cancel(gw_engine *e, uint64_t id);
void __wrap_gw_engine_get_state(gw_engine *e, gw_engine_state *out);
void __wrap_gw_engine_metrics(gw_engine *e, moe_metrics *m);
const moe_model_shape *__wrap_gw_engine_shape(const gw_engine *e);
const char *__wrap_gw_engine_model_name(const gw_engine *e);

moe_status __wrap_gw_engine_submit(gw_engine *e, const gw_request *r, uint64_t *out_id,
                                   moe_err *err)
{
    (void)e;
    moe_status st = MOE_OK;
    moe_mutex_lock(&fake.mu);
    if (fake.queue == 0) {
        st = MOE_FAIL(err, MOE_ERR_BUSY, "the queue is full");
    } else {
        fake.queue--;
        fake.sequences[fake.n++] = (sequence){.request = *r};
        *out_id = fake.n;
    }
    moe_mutex_unlock(&fake.mu);
    return st;
}

void __wrap_gw_engine_cancel(gw_engine *e, uint64_t id)
{
    (void)e;
    moe_mutex_lock(&fake.mu);
    fake.sequences[id - 1].cancelled = true;
    moe_mutex_unlock(&fake.mu);
}

void __wrap_gw_engine_get_state(gw_engine *e, gw_engine_state *out)
{
    (void)e;
    *out = fake.state;
}

void __wrap_gw_engine_metrics(gw_engine *e, moe_metrics *m)
{
    (void)e;
    moe_metrics_add(m, MOE_METRIC_GAUGE, "fake_engine", "says that it was asked", 1, "%s", "");
}

const moe_model_shape *__wrap_gw_engine_shape(const gw_engine *e)
{
    static const moe_model_shape shape = {.vocab = 4096};
    (void)e;
    return &shape;
}

const char *__wrap_gw_engine_model_name(const gw_engine *e)
{
    (void)e;
    return "demo";
}

/* Waits for sequence i to be submitted; its request. */
static gw_request submitted(uint32_t i)
{
    for (int ms = 0; ms < PATIENCE_MS; ms++) {
        moe_mutex_lock(&fake.mu);
        bool there = i < fake.n;
        gw_request r = fake.sequences[i].request;
        moe_mutex_unlock(&fake.mu);
        if (there) {
            return r;
        }
        moe_sleep_ns(MOE_NS_PER_MS);
    }
    fail_msg("sequence %u was never submitted", i);
    return (gw_request){0};
}

static bool is_cancelled(uint32_t i)
{
    moe_mutex_lock(&fake.mu);
    bool cancelled = fake.sequences[i].cancelled;
    moe_mutex_unlock(&fake.mu);
    return cancelled;
}

static void expect_cancelled(uint32_t i)
{
    for (int ms = 0; ms < PATIENCE_MS && !is_cancelled(i); ms++) {
        moe_sleep_ns(MOE_NS_PER_MS);
    }
    assert_true(is_cancelled(i));
}

/* The sequence takes the tokens of a text, one by one. */
static void say(uint32_t i, const char *text)
{
    gw_request r = submitted(i);
    int32_t *ids = NULL;
    uint32_t n = 0;
    assert_int_equal(MOE_OK,
                     gw_tokenizer_encode(tokenizer, text, strlen(text), 100, &ids, &n, NULL));
    for (uint32_t t = 0; t + 1 < n; t++) { /* without the end */
        r.on_token(r.user, ids[t], fake.sequences[i].n_tokens++);
    }
    free(ids);
}

static void finish(uint32_t i, gw_finish how, const moe_err *err)
{
    gw_request r = submitted(i);
    fake.sequences[i].done = true;
    r.on_done(r.user, how, err);
}

static void finish_cancelled(uint32_t i)
{
    moe_err err = {.status = MOE_ERR_CANCELLED, .text = "cancelled"};
    finish(i, GW_FINISH_ERROR, &err);
}

/* ---- the client ---- */

static gw_http *server;

static gw_http_cfg config(void)
{
    return (gw_http_cfg){.listen = "127.0.0.1:0",
                         .max_connections = 100,
                         .max_body_bytes = 2000,
                         .max_input_tokens = 64,
                         .max_output_tokens = 100,
                         .tokenizer = tokenizer};
}

static void serve(const gw_http_cfg *cfg)
{
    moe_err err = {0};
    if (gw_http_create(cfg, &server, &err) != MOE_OK) {
        fail_msg("%s", err.text);
    }
}

static int setup(void **state)
{
    (void)state;
    memset(fake.sequences, 0, sizeof fake.sequences);
    fake.n = 0;
    fake.queue = MAX_SEQUENCES;
    fake.state = (gw_engine_state){.ready = true};
    server = NULL;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < fake.n; i++) { /* of a test that failed half-way */
        if (!fake.sequences[i].done) {
            finish_cancelled(i);
        }
    }
    gw_http_destroy(server);
    return 0;
}

static int open_socket(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(gw_http_port(server)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(0, connect(fd, (struct sockaddr *)&address, sizeof address));
    return fd;
}

static int send_raw(const char *text)
{
    int fd = open_socket();
    assert_int_equal(strlen(text), send(fd, text, strlen(text), MSG_NOSIGNAL));
    return fd;
}

static int post(const char *body)
{
    char text[8192];
    snprintf(text, sizeof text,
             "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
             "Content-Length: %zu\r\n\r\n%s",
             strlen(body), body);
    return send_raw(text);
}

/* Appends what arrives until `words` stand behind offset `from`, or, words NULL, until the server
 * closes. */
static void receive_from(int fd, char *response, size_t from, const char *words)
{
    size_t len = strlen(response);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (words == NULL || strstr(response + from, words) == NULL) {
        if (poll(&p, 1, PATIENCE_MS) != 1) {
            fail_msg("nothing more arrives after: %s", response);
        }
        ssize_t got = recv(fd, response + len, RESPONSE_BYTES - 1 - len, 0);
        if (got <= 0) {
            break;
        }
        len += (size_t)got;
        response[len] = '\0';
    }
    if (words != NULL && strstr(response + from, words) == NULL) {
        fail_msg("closed without \"%s\": %s", words, response);
    }
}

static void receive(int fd, char *response, const char *words)
{
    receive_from(fd, response, 0, words);
}

/* The "text" of all events, joined. */
static void streamed_text(const char *response, char *out)
{
    static const char key[] = "\"text\":\"";
    size_t n = 0;
    for (const char *at = strstr(response, key); at != NULL; at = strstr(at, key)) {
        for (at += sizeof key - 1; *at != '"' && *at != '\0'; at++) {
            out[n++] = *at;
        }
    }
    out[n] = '\0';
}

/* Receives event by event until their texts add up to `text`. */
static void receive_text(int fd, char *response, const char *text)
{
    char so_far[RESPONSE_BYTES];
    for (streamed_text(response, so_far); strcmp(so_far, text) != 0;
         streamed_text(response, so_far)) {
        if (strlen(so_far) > strlen(text)) {
            fail_msg("\"%s\" instead of \"%s\"", so_far, text);
        }
        receive_from(fd, response, strlen(response), "}]}\n\n");
    }
}

static const char *answer_of(int fd)
{
    static char response[RESPONSE_BYTES];
    response[0] = '\0';
    receive(fd, response, NULL);
    close(fd);
    return response;
}

static void expect(const char *response, int status, const char *words)
{
    char line[40];
    snprintf(line, sizeof line, "HTTP/1.1 %d ", status);
    if (strncmp(response, line, strlen(line)) != 0 || strstr(response, words) == NULL) {
        fail_msg("not %d with \"%s\": %s", status, words, response);
    }
}

static const char *get(const char *path)
{
    char text[512];
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: localhost:1\r\nConnection: close\r\n\r\n",
             path);
    return answer_of(send_raw(text));
}

static void expect_idle(void)
{
    for (int ms = 0; ms < PATIENCE_MS; ms += 10) {
        if (strstr(get("/metrics"), "pregate_http_open_requests 0\n") != NULL) {
            return;
        }
        moe_sleep_ns(10 * MOE_NS_PER_MS);
    }
    fail_msg("an exchange is never freed");
}

/* ---- guards and routes ---- */

static void only_hosts_that_name_us_are_served(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    cfg.allow_host = "demo.example";
    serve(&cfg);
    static const struct {
        const char *header;
        int status;
    } cases[] = {
        {"Host: localhost\r\n", 200},         {"Host: LOCALHOST:8080\r\n", 200},
        {"Host: 127.0.0.1:99\r\n", 200},      {"Host: [::1]:99\r\n", 200},
        {"Host: demo.example\r\n", 200},      {"Host: demo.example:443\r\n", 200},
        {"Host: evil.example\r\n", 403},      {"Host: localhost.evil.example\r\n", 403},
        {"Host: demo.example.evil\r\n", 403}, {"Host: 127.0.0.1.evil.example\r\n", 403},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[200];
        snprintf(text, sizeof text, "GET /health HTTP/1.1\r\n%sConnection: close\r\n\r\n",
                 cases[i].header);
        expect(answer_of(send_raw(text)), cases[i].status,
               cases[i].status == 200 ? "\"ready\":true" : "--allow-host");
    }
    const char *response = answer_of(send_raw("GET /health HTTP/1.0\r\n\r\n"));
    assert_non_null(strstr(response, " 403 ")); /* no Host at all */
}

static void a_key_is_asked_for_except_for_health(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    cfg.api_key = "secret";
    serve(&cfg);
    static const char *const wrong[] = {"",
                                        "Authorization: Bearer secre\r\n",
                                        "Authorization: Bearer secrets\r\n",
                                        "Authorization: Bearer Secret\r\n",
                                        "Authorization: Bearer \r\n",
                                        "Authorization: Basic secret\r\n"};
    char text[300];
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        snprintf(text, sizeof text,
                 "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n",
                 wrong[i]);
        const char *response = answer_of(send_raw(text));
        expect(response, 401, "missing or wrong API key");
        assert_non_null(strstr(response, "WWW-Authenticate: Bearer"));
    }
    expect(answer_of(send_raw("GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                              "Authorization: bearer secret\r\n\r\n")),
           200, "\"demo\"");
    expect(get("/health"), 200, "\"ready\":true");
    expect(get("/metrics"), 401, "API key");
}

static void unknown_paths_and_methods_are_refused(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    expect(get("/"), 404, "there are /v1/completions");
    expect(get("/v1/completions/"), 404, "no such path");
    const char *response = get("/v1/completions");
    expect(response, 405, "method not allowed");
    assert_non_null(strstr(response, "Allow: POST"));
    response = answer_of(send_raw("DELETE /metrics HTTP/1.1\r\nHost: localhost\r\n"
                                  "Connection: close\r\n\r\n"));
    expect(response, 405, "method not allowed");
    assert_non_null(strstr(response, "Allow: GET, HEAD"));
    response = answer_of(send_raw("HEAD /health HTTP/1.1\r\nHost: localhost\r\n"
                                  "Connection: close\r\n\r\n"));
    expect(response, 200, "application/json");
    assert_null(strstr(response, "ready"));
}

static void health_follows_the_engine(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    fake.state = (gw_engine_state){.ready = true, .running = 2, .waiting = 3};
    expect(get("/health"), 200, "\"running\":2,\"waiting\":3");
    fake.state = (gw_engine_state){.ready = false, .note = "the store is away"};
    expect(get("/health"), 503, "the store is away");
    expect(get("/health/ready"), 503, "\"ready\":false");
    expect(get("/health/live"), 200, "\"live\":true");
}

static void metrics_count_answers_by_class(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    expect(get("/v1/models"), 200, "\"object\":\"model\"");
    expect(get("/nothing"), 404, "");
    fake.state.ready = false;
    expect(get("/health"), 503, "");
    const char *response = get("/metrics");
    expect(response, 200, "fake_engine 1\n");
    assert_non_null(strstr(response, "text/plain; version=0.0.4"));
    assert_non_null(strstr(response, "pregate_http_responses_total{code=\"2xx\"} 1\n"));
    assert_non_null(strstr(response, "pregate_http_responses_total{code=\"4xx\"} 1\n"));
    assert_non_null(strstr(response, "pregate_http_responses_total{code=\"5xx\"} 1\n"));
    assert_non_null(strstr(response, "# TYPE pregate_http_request_seconds histogram\n"));
}

static void addresses_that_cannot_be_used_are_named(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    gw_http *other = NULL;
    moe_err err = {0};
    static const char *const bad[] = {"localhost",   "example.com:80",  "127.0.0.1:http",
                                      "1.2.3.4.5:1", "127.0.0.1:65536", "127.0.0.1:4294967376",
                                      "127.0.0.1:"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cfg.listen = bad[i];
        assert_int_equal(MOE_ERR_INVALID, gw_http_create(&cfg, &other, &err));
        assert_non_null(strstr(err.text, bad[i]));
        assert_null(other);
    }
    cfg = config();
    serve(&cfg);
    char taken[32];
    snprintf(taken, sizeof taken, "127.0.0.1:%u", gw_http_port(server));
    cfg.listen = taken;
    assert_int_equal(MOE_ERR_BUSY, gw_http_create(&cfg, &other, &err));
    assert_non_null(strstr(err.text, taken));
}

/* ---- completions ---- */

static void bodies_over_the_limit_are_refused(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    char body[2100];
    memset(body, ' ', sizeof body);
    body[2000] = '\0';
    expect(answer_of(post(body)), 400, "not a JSON object");
    body[2000] = ' ';
    body[2001] = '\0';
    expect(answer_of(post(body)), 413, "larger than 2000 bytes");
    assert_int_equal(0, fake.n);
}

static void bad_requests_name_the_field(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    expect(answer_of(post("")), 400, "not a JSON object");
    expect(answer_of(post("{\"prompt\":[5],\"n\":2}")), 400, "\"param\":\"n\"");
    expect(answer_of(post("{\"prompt\":[5],\"model\":\"x\"}")), 404, "\"param\":\"model\"");
    assert_int_equal(0, fake.n);
    expect_idle();
}

static void an_answer_is_the_text_of_its_tokens(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int fd = post("{\"prompt\":[5,6],\"max_tokens\":9,\"temperature\":0.5,\"top_p\":0.5,"
                  "\"seed\":3}");
    gw_request r = submitted(0);
    assert_int_equal(3, r.n_input);
    assert_int_equal(9, r.max_tokens);
    assert_true(r.temperature == 0.5f && r.top_p == 0.5f && r.seed == 3);
    say(0, "Call me Ishmael.");
    finish(0, GW_FINISH_STOP, NULL);
    const char *response = answer_of(fd);
    expect(response, 200,
           "\"text\":\"Call me Ishmael.\",\"index\":0,\"logprobs\":null,"
           "\"finish_reason\":\"stop\"}");
    assert_non_null(strstr(response, "\"prompt_tokens\":3"));
    expect_idle();
}

static void a_cut_answer_says_length(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int fd = post("{\"prompt\":[5]}");
    say(0, "Call");
    finish(0, GW_FINISH_LENGTH, NULL);
    expect(answer_of(fd), 200, "\"finish_reason\":\"length\"");
}

static void choices_keep_the_order_of_their_prompts(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int fd = post("{\"prompt\":[[5],[6],[7]],\"seed\":10}");
    assert_int_equal(12, submitted(2).seed);
    say(2, "third");
    finish(2, GW_FINISH_STOP, NULL);
    say(0, "first");
    say(1, "second");
    finish(1, GW_FINISH_STOP, NULL);
    finish(0, GW_FINISH_STOP, NULL);
    const char *response = answer_of(fd);
    expect(response, 200, "\"text\":\"first\",\"index\":0");
    const char *second = strstr(response, "\"text\":\"second\",\"index\":1");
    const char *third = strstr(response, "\"text\":\"third\",\"index\":2");
    assert_true(second != NULL && third != NULL && second < third);
}

static void a_connection_is_used_again(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int fd = open_socket();
    for (uint32_t i = 0; i < 3; i++) {
        static const char text[] = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                                   "Content-Length: 14\r\n\r\n{\"prompt\":[5]}";
        char response[RESPONSE_BYTES] = "";
        assert_int_equal(sizeof text - 1, send(fd, text, sizeof text - 1, MSG_NOSIGNAL));
        say(i, "word");
        finish(i, GW_FINISH_STOP, NULL);
        receive(fd, response, "\"text\":\"word\"");
    }
    close(fd);
}

static void a_full_queue_says_when_to_come_back(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    fake.queue = 0;
    const char *response = answer_of(post("{\"prompt\":[5]}"));
    expect(response, 503, "the queue is full");
    assert_non_null(strstr(response, "Retry-After: 1\r\n"));
    expect_idle();
}

static void a_half_admitted_request_is_refused_whole(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    fake.queue = 2;
    expect(answer_of(post("{\"prompt\":[[5],[6],[7]]}")), 503, "the queue is full");
    expect_cancelled(0);
    expect_cancelled(1);
    finish_cancelled(0);
    finish_cancelled(1);
    expect_idle();
}

static void a_failed_sequence_is_a_503_with_its_reason(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int fd = post("{\"prompt\":[[5],[6]]}");
    moe_err err = {.status = MOE_ERR_CORRUPT, .text = "expert 17 is corrupt"};
    submitted(1);
    finish(0, GW_FINISH_ERROR, &err);
    finish(1, GW_FINISH_STOP, NULL);
    const char *response = answer_of(fd);
    expect(response, 503, "expert 17 is corrupt");
    assert_non_null(strstr(response, "Retry-After"));
}

static void a_stop_string_ends_the_work_and_is_cut(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int fd = post("{\"prompt\":[5],\"stop\":\"me Ish\"}");
    say(0, "Call me Ishmael.");
    expect_cancelled(0);
    finish_cancelled(0);
    expect(answer_of(fd), 200,
           "\"text\":\"Call \",\"index\":0,\"logprobs\":null,"
           "\"finish_reason\":\"stop\"");
}

/* ---- streaming ---- */

static void events_arrive_while_the_sequence_runs(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    char response[RESPONSE_BYTES] = "";
    int fd = post("{\"prompt\":[5],\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    say(0, "Call");
    receive_text(fd, response, "Call");
    assert_non_null(strstr(response, "\"index\":0,\"logprobs\":null,\"finish_reason\":null}"));
    assert_non_null(strstr(response, "Content-Type: text/event-stream"));
    assert_null(strstr(response, "[DONE]"));
    say(0, "me");
    receive_text(fd, response, "Call me");
    finish(0, GW_FINISH_LENGTH, NULL);
    receive(fd, response, NULL);
    close(fd);
    const char *last = strstr(response, "\"finish_reason\":\"length\"");
    assert_non_null(last);
    const char *usage = strstr(last, "\"choices\":[],\"usage\":{\"prompt_tokens\":2");
    assert_non_null(usage);
    assert_non_null(strstr(usage, "data: [DONE]\n\n"));
    expect_idle();
}

static void streamed_choices_end_one_by_one(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    char response[RESPONSE_BYTES] = "";
    int fd = post("{\"prompt\":[[5],[6]],\"stream\":true}");
    submitted(1);
    finish(1, GW_FINISH_STOP, NULL);
    receive(fd, response, "\"index\":1,\"logprobs\":null,\"finish_reason\":\"stop\"");
    say(0, "word");
    receive_text(fd, response, "word");
    assert_null(strstr(response, "[DONE]"));
    finish(0, GW_FINISH_STOP, NULL);
    receive(fd, response, "data: [DONE]");
    close(fd);
}

static void what_may_become_a_stop_string_is_not_streamed(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    char response[RESPONSE_BYTES] = "";
    int fd = post("{\"prompt\":[5],\"stream\":true,\"stop\":\" me now\"}");
    say(0, "Call me");
    receive_text(fd, response, "Call");
    moe_sleep_ns(50 * MOE_NS_PER_MS);
    say(0, "now");
    expect_cancelled(0);
    finish_cancelled(0);
    receive(fd, response, "[DONE]");
    close(fd);
    char text[RESPONSE_BYTES];
    streamed_text(response, text);
    assert_string_equal("Call", text);
    assert_non_null(strstr(response, "\"finish_reason\":\"stop\""));
}

static void an_error_in_a_stream_is_an_event(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int fd = post("{\"prompt\":[5],\"stream\":true}");
    moe_err err = {.status = MOE_ERR_TIMEOUT, .text = "expert 3 did not arrive"};
    say(0, "Call");
    finish(0, GW_FINISH_ERROR, &err);
    const char *response = answer_of(fd);
    expect(response, 200, "data: {\"error\":{\"message\":\"expert 3 did not arrive\"");
    assert_non_null(strstr(response, "data: [DONE]\n\n"));
}

/* ---- clients that go away ---- */

static void leaving_before_the_answer_cancels(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int fd = post("{\"prompt\":[[5],[6]]}");
    submitted(1);
    assert_false(is_cancelled(0));
    close(fd);
    expect_cancelled(0);
    expect_cancelled(1);
    finish_cancelled(0);
    finish_cancelled(1);
    expect_idle();
    assert_non_null(strstr(get("/metrics"), "pregate_http_abandoned_total 1\n"));
}

static void leaving_a_stream_cancels(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    char response[RESPONSE_BYTES] = "";
    int fd = post("{\"prompt\":[5],\"stream\":true}");
    say(0, "Call");
    receive_text(fd, response, "Call");
    close(fd);
    expect_cancelled(0); /* nothing was sent meanwhile */
    say(0, "Call me Ishmael.");
    finish_cancelled(0);
    expect_idle();
}

static void leaving_a_busy_stream_cancels(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int fd = post("{\"prompt\":[5],\"stream\":true,\"max_tokens\":100}");
    submitted(0);
    close(fd);
    for (int i = 0; i < 90 && !is_cancelled(0); i++) {
        say(0, "word");
        moe_sleep_ns(MOE_NS_PER_MS);
    }
    expect_cancelled(0);
    finish_cancelled(0);
    expect_idle();
}

/* The end may arrive together with the bytes before it. */
static void leaving_in_the_middle_of_a_request_is_noticed(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    for (int i = 0; i < 10; i++) {
        close(send_raw("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                       "Content-Length: 100\r\n\r\n{\"prompt\""));
    }
    expect_idle();
    assert_int_equal(0, fake.n);
}

/* ---- drain ---- */

static void *drain(void *drain_ns)
{
    gw_http_drain(server, *(int64_t *)drain_ns);
    return NULL;
}

static void a_drain_waits_for_answers_and_admits_no_more(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int fd = post("{\"prompt\":[5]}");
    submitted(0);
    pthread_t thread;
    int64_t drain_ns = PATIENCE_MS * MOE_NS_PER_MS;
    assert_int_equal(0, pthread_create(&thread, NULL, drain, &drain_ns));
    for (int ms = 0; ms < PATIENCE_MS && strstr(get("/health"), "\"stopping\"") == NULL; ms++) {
        moe_sleep_ns(MOE_NS_PER_MS);
    }
    const char *response = answer_of(post("{\"prompt\":[6]}"));
    expect(response, 503, "the server is stopping");
    assert_non_null(strstr(response, "Retry-After"));
    expect(get("/health"), 503, "stopping");
    say(0, "word");
    finish(0, GW_FINISH_STOP, NULL);
    expect(answer_of(fd), 200, "\"text\":\"word\"");
    assert_int_equal(0, pthread_join(thread, NULL));
    assert_false(is_cancelled(0));
    assert_int_equal(1, fake.n);
}

static void what_outlasts_the_drain_is_cancelled_and_told_so(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int whole = post("{\"prompt\":[5]}");
    submitted(0);
    int streamed = post("{\"prompt\":[5],\"stream\":true}");
    submitted(1);
    pthread_t thread;
    int64_t drain_ns = MOE_NS_PER_MS;
    assert_int_equal(0, pthread_create(&thread, NULL, drain, &drain_ns));
    expect_cancelled(0);
    expect_cancelled(1);
    finish_cancelled(0);
    finish_cancelled(1);
    expect(answer_of(whole), 503, "cancelled");
    expect(answer_of(streamed), 200, "data: {\"error\":{\"message\":\"cancelled\"");
    assert_int_equal(0, pthread_join(thread, NULL));
}

static void *end_late(void *unused)
{
    (void)unused;
    moe_sleep_ns(200 * MOE_NS_PER_MS);
    finish_cancelled(0);
    finish_cancelled(1);
    return NULL;
}

/* An engine that does not come back in time: connections close, and the server waits for it. */
static void a_stop_outlives_the_engines_last_callback(void **state)
{
    (void)state;
    gw_http_cfg cfg = config();
    serve(&cfg);
    int whole = post("{\"prompt\":[5]}");
    submitted(0);
    int streamed = post("{\"prompt\":[5],\"stream\":true}");
    submitted(1);
    int unfinished = send_raw("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                              "Content-Length: 100\r\n\r\n{\"prompt\"");
    pthread_t thread;
    assert_int_equal(0, pthread_create(&thread, NULL, end_late, NULL));
    gw_http_destroy(server);
    server = NULL;
    assert_true(fake.sequences[0].done && fake.sequences[1].done);
    assert_int_equal(0, pthread_join(thread, NULL));
    assert_string_equal("", answer_of(whole));
    (void)answer_of(streamed);
    (void)answer_of(unfinished);
}

static void load_tokenizer(const char *dir)
{
    char path[1024];
    char *data = NULL;
    size_t bytes = 0;
    moe_err err = {0};
    snprintf(path, sizeof path, "%s/spiece.model", dir);
    if (moe_file_read(path, 16u << 20, &data, &bytes, &err) != MOE_OK ||
        gw_tokenizer_create(data, bytes, &tokenizer, &err) != MOE_OK) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    free(data);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(only_hosts_that_name_us_are_served),
        TEST(a_key_is_asked_for_except_for_health),
        TEST(unknown_paths_and_methods_are_refused),
        TEST(health_follows_the_engine),
        TEST(metrics_count_answers_by_class),
        TEST(addresses_that_cannot_be_used_are_named),
        TEST(bodies_over_the_limit_are_refused),
        TEST(bad_requests_name_the_field),
        TEST(an_answer_is_the_text_of_its_tokens),
        TEST(a_cut_answer_says_length),
        TEST(choices_keep_the_order_of_their_prompts),
        TEST(a_connection_is_used_again),
        TEST(a_full_queue_says_when_to_come_back),
        TEST(a_half_admitted_request_is_refused_whole),
        TEST(a_failed_sequence_is_a_503_with_its_reason),
        TEST(a_stop_string_ends_the_work_and_is_cut),
        TEST(events_arrive_while_the_sequence_runs),
        TEST(streamed_choices_end_one_by_one),
        TEST(what_may_become_a_stop_string_is_not_streamed),
        TEST(an_error_in_a_stream_is_an_event),
        TEST(leaving_before_the_answer_cancels),
        TEST(leaving_a_stream_cancels),
        TEST(leaving_a_busy_stream_cancels),
        TEST(leaving_in_the_middle_of_a_request_is_noticed),
        TEST(a_drain_waits_for_answers_and_admits_no_more),
        TEST(what_outlasts_the_drain_is_cancelled_and_told_so),
        TEST(a_stop_outlives_the_engines_last_callback),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL-DIR\n", argv[0]);
        return 2;
    }
    moe_mutex_init(&fake.mu);
    load_tokenizer(argv[1]);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gw_tokenizer_destroy(tokenizer);
    return failed != 0;
}
