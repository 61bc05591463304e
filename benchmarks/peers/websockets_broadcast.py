"""Fan-out on websockets' asyncio server with uvloop: every message of any client goes to all of them."""

import sys

import uvloop
from websockets.asyncio.server import broadcast, serve

members = set()


async def member(ws):
    members.add(ws)
    try:
        async for message in ws:
            broadcast(members, message)
    finally:
        members.discard(ws)


async def main():
    async with serve(
        member, "127.0.0.1", int(sys.argv[1]), compression=None, ping_interval=None, backlog=1024
    ) as server:
        await server.serve_forever()


uvloop.run(main())
