"""A program that follows a director with pyControl4, does what the test tells it, and says what it sees.

Arguments: host and port of the director.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pyControl4.director import C4Director
from pyControl4.light import C4Light
from pyControl4.relay import C4Relay
from pyControl4.websocket import C4Websocket
from talk import commands, say


class Program:
    def __init__(self, address: str) -> None:
        self.address = address
        self.callbacks: dict[str, Callable[..., Any]] = {}
        self.socket = C4Websocket(address, connect_callback=self.connected, disconnect_callback=self.disconnected)

    async def connected(self) -> None:
        say("connected")

    async def disconnected(self) -> None:
        say("disconnected")

    async def connect(self, token: str) -> None:
        await self.socket.sio_connect(token)

    async def disconnect(self) -> None:
        await self.socket.sio_disconnect()

    async def add(self, item: int, name: str, raises: bool = False) -> None:
        async def callback(device: int, message: dict[str, Any]) -> None:
            say("item", name=name, device=device, message=message)
            if raises:
                raise ValueError("a callback that raises")

        self.callbacks[name] = callback
        self.socket.add_item_callback(item, callback)

    async def remove(self, item: int, name: str | None = None) -> None:
        self.socket.remove_item_callback(item, self.callbacks[name] if name else None)

    async def items(self, token: str) -> None:
        say("items", items=await C4Director(self.address, token).get_all_item_info())

    async def set_level(self, token: str, item: int, level: int) -> None:
        light = C4Light(C4Director(self.address, token), item)
        await light.set_level(level)
        say("level", level=await light.get_level())

    async def lock(self, token: str, item: int) -> None:
        relay = C4Relay(C4Director(self.address, token), item)
        await relay.open()
        say("locked", state=await relay.get_relay_state())


def note_pongs() -> None:
    """Says for each pong that came."""

    class Pongs(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Received packet PONG"):
                say("pong")

    logger = logging.getLogger("engineio_v3.client")
    logger.setLevel(logging.INFO)
    logger.addHandler(Pongs())
    logger.propagate = False


async def main() -> None:
    note_pongs()
    program = Program(sys.argv[1])
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    loop.set_exception_handler(lambda _, context: say("loop_error", message=context["message"]))

    def read() -> None:
        for command in commands():
            loop.call_soon_threadsafe(queue.put_nowait, command)
        loop.call_soon_threadsafe(queue.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    say("ready")
    while (command := await queue.get()) is not None:
        name = command.pop("command")
        started = time.monotonic()
        try:
            await getattr(program, name)(**command)
        except Exception as error:
            say("error", command=name, kind=type(error).__name__, text=str(error))
        else:
            say("done", command=name, seconds=time.monotonic() - started)


asyncio.run(main())
