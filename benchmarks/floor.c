/* floor: the least that an echo takes. One epoll loop that knows no error: it accepts what wsload opens, reads whatever a
 * socket has, unmasks its short frames and writes them back. What a server takes more than this is its own doing.
 *
 *   floor PORT
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 1 << 20, EVENTS = 256, SIZE = 16384 };

/* For the key that wsload sends. */
static const char answer[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static unsigned char is_open[MOST];

static int unmasked(const unsigned char *data, int length, unsigned char *out) {
    int at = 0, size = 0;
    while (at < length) {
        int payload = data[at + 1] & 0x7f;
        out[size++] = data[at];
        out[size++] = (unsigned char)payload;
        for (int i = 0; i < payload; i++) out[size++] = data[at + 6 + i] ^ data[at + 2 + (i & 3)];
        at += 6 + payload;
    }
    return size;
}

int main(int count, char **arguments) {
    static unsigned char data[SIZE], out[SIZE];
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0), one = 1;
    if (count < 2) return 2;
    address.sin_port = htons((unsigned short)atoi(arguments[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) return 1;
    event.data.fd = listener;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int sock = events[i].data.fd;
            if (sock == listener) {
                sock = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (sock < 0 || sock >= MOST) continue;
                setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                is_open[sock] = 0;
                event.data.fd = sock;
                epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &event);
                continue;
            }
            int length = (int)recv(sock, data, SIZE, 0);
            if (length <= 0) {
                close(sock);
            } else if (!is_open[sock]) {
                is_open[sock] = 1;
                send(sock, answer, sizeof answer - 1, MSG_NOSIGNAL);
            } else {
                send(sock, out, (size_t)unmasked(data, length, out), MSG_NOSIGNAL);
            }
        }
    }
}
