"""A program that watches a hub with pyisyox, does what the test tells it, and says what it sees.

Arguments: the hub's URL, ``local`` or ``portal``, name, password.
"""

import asyncio
import logging
import sys
import time
from typing import Any

import aiohttp
from pyisyox.auth import LocalAuth, PortalAuth
from pyisyox.client import IoXClient
from pyisyox.controller import Controller
from pyisyox.runtime.events import Event, EventDispatcher
from pyisyox.runtime.ws import WebSocketEventStream
from talk import commands, say

logging.basicConfig(level=logging.INFO)  # to standard error
logging.getLogger("pyisyox.runtime.ws").setLevel(logging.DEBUG)  # also how long it waits before it tries again


def on_status(status: Any) -> None:
    say("status", status=status.name, at=time.monotonic())


class Program:
    def __init__(self, url: str, kind: str, user: str, password: str) -> None:
        self.url = url
        self.auth = {"local": LocalAuth, "portal": PortalAuth}[kind](user, password)
        self.controller = Controller(url, self.auth)
        self.stream: WebSocketEventStream | None = None
        self.session: aiohttp.ClientSession | None = None
        self.raises = False

    def on_event(self, event: Event) -> None:
        stream = self.stream or self.controller.websocket
        say(
            "event",
            number=event.seqnum,
            control=event.control,
            action=event.action,
            address=event.node_address,
            status=stream.status.name if stream else None,
        )
        if self.raises:
            raise ValueError("a callback that raises")

    async def connect(self) -> None:
        """All that its users do: load everything, then subscribe."""
        await self.controller.connect(start_websocket=False)
        say("nodes", nodes={address: [node.name, node.status.value] for address, node in self.controller.nodes.items()})
        await self.controller.connect()
        self.controller.add_status_listener(on_status)
        self.controller.add_event_listener(self.on_event)

    async def subscribe(self) -> None:
        """The stream alone."""
        self.session = aiohttp.ClientSession()
        dispatcher = EventDispatcher({})
        dispatcher.add_listener(self.on_event)
        self.stream = WebSocketEventStream(IoXClient(self.url, self.auth, self.session), dispatcher)
        self.stream.add_status_listener(on_status)
        self.stream.start()

    async def send(self, address: str, order: str, value: int | None = None) -> None:
        await self.controller.nodes[address].send_command(order, *([] if value is None else [value]))

    async def levels(self) -> None:
        say("levels", levels={address: node.status.value for address, node in self.controller.nodes.items()})

    async def raise_in_callbacks(self) -> None:
        self.raises = True

    async def stop(self) -> None:
        if self.stream is not None:
            await self.stream.stop()
        if self.session is not None:
            await self.session.close()
        await self.controller.stop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        say("stopped", tasks=sorted(task.get_name() for task in others if task.get_name().startswith("pyisyox")))


async def main() -> None:
    program = Program(*sys.argv[1:])
    lines = commands()
    say("ready")
    while (command := await asyncio.to_thread(next, lines, None)) is not None:
        name = command.pop("command")
        try:
            await getattr(program, name)(**command)
        except Exception as error:
            say("error", command=name, kind=type(error).__name__, text=str(error))
        else:
            say("done", command=name)


asyncio.run(main())
