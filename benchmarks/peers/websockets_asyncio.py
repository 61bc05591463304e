"""Echo on websockets' asyncio server with uvloop, compression off."""

import sys

import uvloop
from websockets.asyncio.server import serve


async def echo(ws):
    async for message in ws:
        await ws.send(message)


async def main():
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), compression=None, max_size=None) as server:
        await server.serve_forever()


uvloop.run(main())
