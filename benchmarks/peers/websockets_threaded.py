"""Echo on websockets' threaded server, compression off."""

import sys

from websockets.sync.server import serve


def echo(ws):
    for message in ws:
        ws.send(message)


with serve(echo, "127.0.0.1", int(sys.argv[1]), compression=None, max_size=None) as server:
    server.serve_forever()
