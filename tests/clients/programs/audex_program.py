"""A program that has sound transcribed with audex, does what the test tells it, and says what it gets.

Arguments: the transcriber's URL, the key.
"""

import asyncio
import sys
import threading
from typing import Any

from audex.lib.transcription.dashscope import DashscopeParaformer
from audex.lib.transcription.events import Delta
from audex.lib.websocket.connection import WebsocketConnection
from audex.lib.websocket.pool import WebsocketConnectionPool
from talk import commands, say

RATE = 16000
PIECE = bytes(RATE // 10 * 2)  # a tenth of a second


class Program:
    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key
        self.headers = {"Authorization": f"Bearer {key}"}
        self.client = self.new_client()
        self.connection: WebsocketConnection | None = None
        self.pool: WebsocketConnectionPool | None = None

    def new_client(self, **options: Any) -> DashscopeParaformer:
        return DashscopeParaformer(url=self.url, api_key=self.key, sample_rate=RATE, **options)

    # ---- its transcription, as its users call it

    async def renew_client(self, **options: Any) -> None:
        self.client = self.new_client(**options)

    async def transcribe(self, tenths: int, name: str = "", pause: float = 0.0) -> None:
        last = await self.transcribed(self.client, tenths, name, pause)
        say("transcribed", name=name, text=last)

    async def transcribed(self, client: DashscopeParaformer, tenths: int, name: str = "", pause: float = 0.0) -> str:
        """One task: sound while results come, then the last result."""
        session = client.session()
        await session.start()
        try:

            async def speak() -> None:
                for _ in range(tenths):
                    await session.send(PIECE)
                    await asyncio.sleep(pause)
                await session.finish()

            speaker = asyncio.create_task(speak())
            last = ""
            async for event in session.receive():
                if isinstance(event, Delta):
                    last = event.text
                    fields = {"text": event.text, "begin": event.offset_begin, "end": event.offset_end}
                    say("delta", name=name, interim=event.interim, **fields)
                else:
                    say(f"utterance_{type(event).__name__.lower()}", name=name)
            await speaker
            return last
        finally:
            await session.close()

    async def transcribe_at_once(self, tasks: int, tenths: int) -> None:
        """Tasks of one event loop, on the one pool."""
        texts = await asyncio.gather(*(self.transcribed(self.client, tenths) for _ in range(tasks)))
        say("transcribed_at_once", texts=sorted(set(texts)), count=len(texts))

    async def transcribe_in_threads(self, threads: int, tenths: int) -> None:
        """Threads with an event loop and a pool each."""
        texts = []

        def run() -> None:
            async def transcribe() -> None:
                client = self.new_client()
                texts.append(await self.transcribed(client, tenths))
                await client.pool.close_all()

            asyncio.run(transcribe())

        running = [threading.Thread(target=run) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            await asyncio.to_thread(thread.join)
        say("transcribed_in_threads", texts=sorted(set(texts)), count=len(texts))

    async def pool_of(self) -> None:
        pool = self.client.pool
        counts = {"available": pool.available_connections, "busy": pool.busy_connections}
        say("pool", total=pool.total_connections, pending=pool.pending_connections, **counts)

    async def close_pool(self) -> None:
        await self.client.pool.close_all()

    # ---- its connection

    async def open(self, idle_timeout: float = 30.0, **options: Any) -> None:
        self.connection = WebsocketConnection(uri=self.url, headers=self.headers, idle_timeout=idle_timeout, **options)
        await self.connection.acquire()
        assert self.connection.websocket is not None
        say("opened", extensions=[extension.name for extension in self.connection.websocket.protocol.extensions])

    async def say_text(self, text: str) -> None:
        assert self.connection is not None
        await self.connection.send(text)

    async def say_bytes(self, count: int) -> None:
        assert self.connection is not None
        await self.connection.send(bytes(count))

    async def hear(self) -> None:
        assert self.connection is not None
        say("hears")
        say("heard", text=await self.connection.recv())

    async def ping(self) -> None:
        assert self.connection is not None
        await self.connection.ping()

    async def release(self) -> None:
        assert self.connection is not None
        await self.connection.release()

    async def is_connected(self) -> None:
        assert self.connection is not None
        say("is_connected", value=self.connection.is_connected)

    async def close(self) -> None:
        assert self.connection is not None
        await self.connection.close()

    # ---- its pool

    async def lease(self, times: int, size: int) -> None:
        """Takes connections of a small pool one after the other."""
        pool = WebsocketConnectionPool(uri=self.url, headers=self.headers, max_connections=size, max_retries=1)
        names = []
        for _ in range(times):
            async with pool.get_connection() as connection:
                names.append(connection._connection_id)
        say("leased", different=len(set(names)), total=pool.total_connections)
        await pool.close_all()


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
