"""Thousands of connections come and go, and everything is as before."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from krait_ws.session import Session
from krait_ws.testing import SiteServer
from tests.integration.support import (
    FLAVOURS,
    TEXT,
    RawClient,
    close_frame,
    eventually,
    living_greenlets,
    native_threads,
    open_descriptors,
)

Serve = Callable[..., SiteServer]


def come_and_go(port: int, count: int, start: int = 0) -> None:
    """A connection after the other; each ends in another way."""
    for number in range(start, start + count):
        with RawClient(port) as client:
            client.send_frame(TEXT, f"number {number}")
            client.expect(f"number {number}")
            if number % 3 == 0:
                client.send(close_frame(1000))
                client.expect_close(1000, answer=False)
            elif number % 3 == 1:
                client.reset()


def state_of(site: SiteServer) -> tuple[int, ...]:
    """Descriptors, threads, greenlets and sessions that are alive; without the workers of route scripts, which stay."""
    workers = site.server.workers.size
    sessions = sum(isinstance(found, Session) for found in gc.get_objects())
    return len(open_descriptors()), len(native_threads()) - workers, len(living_greenlets()), sessions


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_two_thousand_connections_come_and_go(serve: Serve, flavour: str) -> None:
    runs_on, controller = FLAVOURS[flavour]
    site = serve(controller, runs_on=runs_on)
    come_and_go(site.port, 50)
    eventually(lambda: not site.server.sessions)
    before = state_of(site)
    with ThreadPoolExecutor(8) as executor:
        for future in [executor.submit(come_and_go, site.port, 250, start * 250) for start in range(8)]:
            future.result()
    eventually(lambda: all(now <= then for now, then in zip(state_of(site), before, strict=True)))


def test_connections_that_come_while_others_go(serve: Serve) -> None:
    """Descriptors are reused at once: no event of an old connection may reach a new one of the same number."""
    site = serve(FLAVOURS["loop"][1], runs_on="loop")
    failures: list[BaseException] = []

    def talk(name: str) -> None:
        try:
            for number in range(100):
                with RawClient(site.port) as client:
                    client.send_frame(TEXT, f"{name} {number}")
                    client.expect(f"{name} {number}")
                    client.reset()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
