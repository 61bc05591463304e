/* wsload: WebSocket load from one process, one epoll loop.
 *
 *   wsload echo HOST PORT PATH CONNS DEPTH SIZE SECONDS [binary]
 *       Keeps DEPTH messages of SIZE bytes in flight on each of CONNS connections to an echo route.
 *   wsload idle HOST PORT PATH CONNS SECONDS
 *       Opens CONNS connections, says nothing, holds them SECONDS; answers pings.
 *   wsload fanout HOST PORT PATH CONNS SECONDS
 *       Opens CONNS connections, reads whatever the server pushes, counts messages.
 *   wsload broadcast HOST PORT PATH CONNS DEPTH SIZE SECONDS
 *       Opens CONNS connections to a route that sends every message to all of them. One connection sends, DEPTH
 *       messages ahead of the last that everybody has. Counts deliveries; times a message until its last delivery.
 *   wsload handshake HOST PORT PATH CONNS SECONDS
 *       Opens connections as fast as the server takes them, CONNS at a time; closes each after its 101.
 *
 * Environment: SRVPID    the server's process id(s), comma separated: their CPU time and memory are reported
 *              WSPROTO   value for Sec-WebSocket-Protocol
 *              WSORIGIN  value for Origin
 *              WSHEADERS further header lines, each ended by \r\n
 * Prints one line of key=value pairs, and before it "open" on stderr when all connections are open (not in mode
 * handshake). Every reply's length is checked; a short, refused or broken connection is an error.
 * cpu_us_per_msg is the CPU of the server for a message (in mode handshake for a handshake), sys_us_per_msg the part of
 * it in the kernel. load_pct is the loader's own CPU: near 100 it is the loader that limits.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int fd;
    unsigned char head[10]; /* header bytes of the frame being read */
    int head_len;
    uint64_t left;          /* payload bytes still to come */
    uint64_t message_len;   /* payload bytes of the message so far */
    int in_payload, control, fin;
    unsigned char *out;
    size_t out_pos, out_len;
    double sent_at;
    unsigned char ctl[125]; int ctl_len, ctl_op;
} Conn;

static unsigned char *frame;
static size_t frame_len, payload_size;
static int epoll_fd;
static long long total, total_bytes, wrong;
static float *latency_us;
static long latency_count;
enum { LATENCY_MAX = 1 << 22 };

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static void die(const char *what) { fprintf(stderr, "wsload: %s (%s)\n", what, strerror(errno)); exit(2); }

static int server_pids[64], server_pid_count;
static void read_pids(void) {
    char *s = getenv("SRVPID");
    if (!s) return;
    s = strdup(s);
    for (char *t = strtok(s, ","); t && server_pid_count < 64; t = strtok(NULL, ",")) server_pids[server_pid_count++] = atoi(t);
}
static double server_sys; /* seconds of what server_cpu gave last that were the kernel's */
static double server_cpu(void) {
    double sum = 0;
    server_sys = 0;
    for (int i = 0; i < server_pid_count; i++) {
        char p[64], s[4096]; unsigned long ut, st;
        snprintf(p, sizeof p, "/proc/%d/stat", server_pids[i]);
        FILE *f = fopen(p, "r"); if (!f) continue;
        size_t k = fread(s, 1, sizeof s - 1, f); s[k] = 0; fclose(f);
        char *q = strrchr(s, ')');
        if (q && sscanf(q + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &ut, &st) == 2)
            { sum += (double)(ut + st) / sysconf(_SC_CLK_TCK); server_sys += (double)st / sysconf(_SC_CLK_TCK); }
    }
    return sum;
}
static long server_rss_kb(void) {
    long sum = 0;
    for (int i = 0; i < server_pid_count; i++) {
        char p[64], l[256]; long v = 0;
        snprintf(p, sizeof p, "/proc/%d/status", server_pids[i]);
        FILE *f = fopen(p, "r"); if (!f) continue;
        while (fgets(l, sizeof l, f)) if (sscanf(l, "VmRSS: %ld", &v) == 1) break;
        fclose(f); sum += v;
    }
    return sum;
}

static char request[4096];
static int request_len;
static void build_request(const char *host, int port, const char *path) {
    const char *proto = getenv("WSPROTO"), *origin = getenv("WSORIGIN"), *more = getenv("WSHEADERS");
    request_len = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s%s%s%s%s%s\r\n",
        path, host, port, proto ? "Sec-WebSocket-Protocol: " : "", proto ? proto : "", proto ? "\r\n" : "",
        origin ? "Origin: " : "", origin ? origin : "", origin ? "\r\n" : "", more ? more : "");
    if (request_len >= (int)sizeof request) die("request too long");
}
static int open_socket(const char *host, int port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1, got = 0;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    char reply[8192];
    if (fd < 0) die("socket");
    inet_pton(AF_INET, host, &a.sin_addr);
    if (connect(fd, (void *)&a, sizeof a) < 0) die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (send(fd, request, request_len, MSG_NOSIGNAL) != request_len) die("handshake send");
    while (got < 4 || memcmp(reply + got - 4, "\r\n\r\n", 4)) { /* byte by byte: leaves the frames unread */
        int r = recv(fd, reply + got, 1, 0);
        if (r <= 0 || got >= (int)sizeof reply - 2) { fprintf(stderr, "wsload: handshake ended: %.*s\n", got, reply); exit(3); }
        got += r;
    }
    if (strncmp(reply, "HTTP/1.1 101", 12)) { fprintf(stderr, "wsload: refused: %.*s\n", got, reply); exit(3); }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void watch(Conn *c, uint32_t events, int op) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, op, c->fd, &e)) die("epoll_ctl");
}
static void flush(Conn *c) {
    while (c->out_pos < c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_pos, c->out_len - c->out_pos, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) { watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD); return; }
        if (n < 0) die("send");
        c->out_pos += n;
    }
    c->out_pos = c->out_len = 0;
}
static void enqueue(Conn *c, int count) {
    for (int i = 0; i < count; i++) { memcpy(c->out + c->out_len, frame, frame_len); c->out_len += frame_len; }
}
static void build_frame(size_t size, int binary) {
    static const unsigned char mask[4] = {0x12, 0x34, 0x56, 0x78};
    size_t o = 0;
    frame = malloc(size + 14);
    frame[o++] = binary ? 0x82 : 0x81;
    if (size < 126) frame[o++] = 0x80 | size;
    else if (size < 65536) { frame[o++] = 0x80 | 126; frame[o++] = size >> 8; frame[o++] = size; }
    else { frame[o++] = 0x80 | 127; for (int i = 7; i >= 0; i--) frame[o++] = (uint64_t)size >> (8 * i); }
    memcpy(frame + o, mask, 4); o += 4;
    for (size_t i = 0; i < size; i++) frame[o++] = ('a' + i % 26) ^ mask[i & 3];
    frame_len = o; payload_size = size;
}
static void pong(Conn *c) {
    unsigned char b[131]; int n = 0;
    b[n++] = 0x8a; b[n++] = 0x80 | c->ctl_len; memset(b + n, 0, 4); n += 4; /* mask of zeros */
    memcpy(b + n, c->ctl, c->ctl_len); n += c->ctl_len;
    if (c->out_len == 0) { if (send(c->fd, b, n, MSG_NOSIGNAL) < 0 && errno != EAGAIN) die("pong"); }
}
/* Feeds bytes to the connection's frame reader; returns how many whole data messages ended in them. */
static int feed(Conn *c, const unsigned char *b, size_t n) {
    int done = 0;
    size_t p = 0;
    while (p < n || (c->in_payload && !c->left)) {
        if (!c->in_payload) {
            c->head[c->head_len++] = b[p++];
            if (c->head_len < 2) continue;
            int l = c->head[1] & 127, want = 2 + (l == 126 ? 2 : l == 127 ? 8 : 0);
            if (c->head[1] & 128) { fprintf(stderr, "wsload: masked frame from the server\n"); exit(4); }
            if (c->head_len < want) continue;
            uint64_t len = l;
            if (l >= 126) { len = 0; for (int i = 2; i < want; i++) len = len << 8 | c->head[i]; }
            c->fin = c->head[0] >> 7; c->control = (c->head[0] & 15) >= 8; c->ctl_op = c->head[0] & 15; c->ctl_len = 0;
            c->head_len = 0; c->left = len; c->in_payload = 1;
            if (!c->control) c->message_len += len;
        } else {
            size_t take = c->left < n - p ? c->left : n - p;
            if (c->control) { memcpy(c->ctl + c->ctl_len, b + p, take); c->ctl_len += take; }
            c->left -= take; p += take;
            if (c->left) continue;
            c->in_payload = 0;
            if (c->control) {
                if (c->ctl_op == 9) pong(c);
                if (c->ctl_op == 8) { fprintf(stderr, "wsload: closed by the server, code %d\n", c->ctl_len > 1 ? c->ctl[0] << 8 | c->ctl[1] : 1005); exit(4); }
            } else if (c->fin) {
                done++; total_bytes += c->message_len;
                if (payload_size && c->message_len != payload_size) wrong++;
                c->message_len = 0;
            }
        }
    }
    return done;
}
static int by_value(const void *a, const void *b) { float x = *(const float *)a, y = *(const float *)b; return (x > y) - (x < y); }
static double own_cpu(void) {
    struct rusage u; getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}
static void print_latency(void) {
    static const struct { const char *name; double part; } p[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"p999", .999}};
    if (!latency_count) return;
    qsort(latency_us, latency_count, sizeof(float), by_value);
    for (int i = 0; i < 4; i++) printf(" %s_us=%.0f", p[i].name, latency_us[(long)(latency_count * p[i].part)]);
    printf(" max_us=%.0f", latency_us[latency_count - 1]);
}
static void print_cpu(long long n, double took, double cpu, double sys, double own) {
    printf(" load_pct=%.0f", own / took * 100);
    if (!server_pid_count) return;
    printf(" cpu_us_per_msg=%.2f sys_us_per_msg=%.2f cpu_pct=%.0f", n ? cpu / n * 1e6 : 0.0, n ? sys / n * 1e6 : 0.0, cpu / took * 100);
}

static int handshake_main(const char *host, int port, int count, double seconds) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct { int fd, got, sent; double at; char reply[1024]; } *c = calloc(count, sizeof *c);
    struct epoll_event ev[512];
    long long made = 0;
    double start = now(), from = start + (seconds > 2 ? 0.5 : 0), end = start + seconds;
    double cpu0 = server_cpu(), sys0 = server_sys, own0 = own_cpu();
    int warm = 0;
    inet_pton(AF_INET, host, &a.sin_addr);
    for (int i = 0; i < count; i++) c[i].fd = -1;
    for (;;) {
        double t = now();
        if (!warm && t >= from) { warm = 1; made = 0; latency_count = 0; from = t; cpu0 = server_cpu(); sys0 = server_sys; own0 = own_cpu(); }
        if (t >= end) break;
        for (int i = 0; i < count; i++) {
            if (c[i].fd >= 0) continue;
            struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.u32 = i};
            c[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0); c[i].got = c[i].sent = 0; c[i].at = now();
            if (c[i].fd < 0) die("socket");
            if (connect(c[i].fd, (void *)&a, sizeof a) && errno != EINPROGRESS) die("connect");
            if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c[i].fd, &e)) die("epoll_ctl");
        }
        int k = epoll_wait(epoll_fd, ev, 512, 50);
        for (int j = 0; j < k; j++) {
            int i = ev[j].data.u32;
            if (!c[i].sent && ev[j].events & EPOLLOUT) {
                struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
                if (send(c[i].fd, request, request_len, MSG_NOSIGNAL) != request_len) die("handshake send");
                c[i].sent = 1;
                epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c[i].fd, &e);
            }
            if (!(ev[j].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            ssize_t got = recv(c[i].fd, c[i].reply + c[i].got, sizeof c[i].reply - 1 - c[i].got, 0);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) { fprintf(stderr, "wsload: handshake ended\n"); return 3; }
            c[i].got += got; c[i].reply[c[i].got] = 0;
            if (!strstr(c[i].reply, "\r\n\r\n")) continue;
            if (strncmp(c[i].reply, "HTTP/1.1 101", 12)) { fprintf(stderr, "wsload: refused: %s\n", c[i].reply); return 3; }
            if (latency_count < LATENCY_MAX) latency_us[latency_count++] = (now() - c[i].at) * 1e6;
            made++;
            close(c[i].fd); c[i].fd = -1;
        }
    }
    double took = now() - from, cpu = server_cpu() - cpu0, sys = server_sys - sys0, own = own_cpu() - own0;
    printf("mode=handshake conns=%d msgs=%lld handshakes_per_s=%.0f", count, made, made / took);
    print_latency();
    print_cpu(made, took, cpu, sys, own);
    printf("\n");
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 7) { fprintf(stderr, "usage: see the head of wsload.c\n"); return 1; }
    const char *mode = argv[1], *host = argv[2], *path = argv[4];
    int port = atoi(argv[3]), count = atoi(argv[5]), echo = !strcmp(mode, "echo"), cast = !strcmp(mode, "broadcast"), depth = 0;
    double seconds;
    struct rlimit r = {200000, 200000};
    if (setrlimit(RLIMIT_NOFILE, &r)) { getrlimit(RLIMIT_NOFILE, &r); r.rlim_cur = r.rlim_max; setrlimit(RLIMIT_NOFILE, &r); }
    read_pids();
    if (echo || cast) {
        if (argc < 9) { fprintf(stderr, "usage: see the head of wsload.c\n"); return 1; }
        depth = atoi(argv[6]); build_frame(atol(argv[7]), argc > 9); seconds = atof(argv[8]);
    } else seconds = atof(argv[6]);
    latency_us = malloc(sizeof(float) * LATENCY_MAX);
    epoll_fd = epoll_create1(0);
    build_request(host, port, path);
    if (!strcmp(mode, "handshake")) return handshake_main(host, port, count, seconds);
    Conn *conns = calloc(count, sizeof *conns);
    long rss0 = server_rss_kb();
    double t = now();
    for (int i = 0; i < count; i++) {
        conns[i].fd = open_socket(host, port);
        if (echo || cast) conns[i].out = malloc(frame_len * depth);
        watch(&conns[i], EPOLLIN, EPOLL_CTL_ADD);
    }
    double handshake_s = now() - t;
    fprintf(stderr, "open\n");
    double start = now(), end = start + seconds, from = start + (seconds > 2 ? 0.5 : 0), cpu0 = server_cpu(), sys0 = server_sys, own0 = own_cpu();
    long long everyone = 0; /* deliveries of broadcasts that all have */
    long long total0 = 0, bytes0 = 0;
    int warm = 0;
    for (int i = 0; echo && i < count; i++) { conns[i].sent_at = now(); enqueue(&conns[i], depth); flush(&conns[i]); }
    if (cast) { conns[0].sent_at = now(); enqueue(&conns[0], depth); flush(&conns[0]); }
    static unsigned char buf[1 << 18];
    struct epoll_event ev[512];
    for (;;) {
        double at = now();
        if (!warm && at >= from) { warm = 1; total0 = total; bytes0 = total_bytes; latency_count = 0; from = at; cpu0 = server_cpu(); sys0 = server_sys; own0 = own_cpu(); }
        if (at >= end) break;
        int k = epoll_wait(epoll_fd, ev, 512, 50);
        for (int j = 0; j < k; j++) {
            Conn *c = ev[j].data.ptr;
            if (ev[j].events & EPOLLOUT) { flush(c); if (!c->out_len) watch(c, EPOLLIN, EPOLL_CTL_MOD); }
            if (!(ev[j].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            ssize_t got = recv(c->fd, buf, sizeof buf, 0);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) { fprintf(stderr, "wsload: connection lost\n"); return 4; }
            int done = feed(c, buf, got);
            if (!done) continue;
            total += done;
            if (cast && total - everyone >= count) { /* everybody has one more */
                double tt = now();
                int rounds = (total - everyone) / count;
                everyone += (long long)rounds * count;
                if (latency_count < LATENCY_MAX) latency_us[latency_count++] = (tt - conns[0].sent_at) * 1e6;
                conns[0].sent_at = tt;
                if (!conns[0].out_len) { enqueue(&conns[0], rounds); flush(&conns[0]); }
            }
            if (!echo) continue;
            double tt = now();
            if (latency_count < LATENCY_MAX) latency_us[latency_count++] = (tt - c->sent_at) * 1e6;
            c->sent_at = tt;
            int busy = c->out_len > 0;
            if (busy) { /* the unsent part moves to the front so that the buffer never overflows */
                memmove(c->out, c->out + c->out_pos, c->out_len - c->out_pos); c->out_len -= c->out_pos; c->out_pos = 0;
            }
            enqueue(c, done);
            if (!busy) flush(c);
        }
    }
    double took = now() - from, cpu = server_cpu() - cpu0, sys = server_sys - sys0, own = own_cpu() - own0;
    long rss1 = server_rss_kb();
    long long n = total - total0;
    if (wrong) { fprintf(stderr, "wsload: %lld replies of a wrong length\n", wrong); return 5; }
    printf("mode=%s conns=%d depth=%d size=%zu msgs=%lld msgs_per_s=%.0f mb_per_s=%.2f", mode, count, depth, payload_size, n, n / took, (total_bytes - bytes0) / took / 1e6);
    print_latency();
    print_cpu(n, took, cpu, sys, own);
    if (server_pid_count) printf(" rss_kb=%ld rss_kb_per_conn=%.2f", rss1, (double)(rss1 - rss0) / count);
    printf(" handshakes_per_s=%.0f\n", count / handshake_s);
    return 0;
}
