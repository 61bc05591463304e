"""audex 1.1.3 against the transcriber, as it comes from PyPI."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from tests.client.proxy import Proxy
from tests.clients.conftest import SITES
from tests.clients.support import Program
from tests.integration.support import eventually

Serve = Callable[..., SiteServer]
Start = Callable[..., Program]
PATH = "/api-ws/v1/inference"


@pytest.fixture
def site(krait_site: Serve) -> SiteServer:
    return krait_site(SITES / "transcriber")


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(port)`` starts a program; it ends with the test."""
    with ExitStack() as stack:

        def start(port: int, key: str = "demo-key", path: str = PATH) -> Program:
            url = f"ws://127.0.0.1:{port}{path}"
            program = stack.enter_context(Program("audex", "audex_program.py", url, key))
            program.wait_for("ready")
            return program

        yield start


def module(name: str) -> dict[str, Any]:
    """The variables of a module of the transcriber that is being served."""
    (found,) = [module for key, module in list(sys.modules.items()) if key.endswith(f".{name}")]
    return vars(found)


def load(site: SiteServer) -> None:
    """Makes the server import what the tests look into."""
    site.connect(PATH, headers={"Authorization": "Bearer demo-key"}).close()
    eventually(lambda: not site.server.sessions)


def answers(program: Program, **fields: Any) -> dict[str, Any]:
    """What comes back on the open connection."""
    program.tell("hear")
    header: dict[str, Any] = json.loads(program.wait_for("heard")["text"])["header"]
    assert {name: header.get(name) for name in fields} == fields
    return header


# ---- tasks


@pytest.mark.parametrize("place", ["a site of its own", "a part of sites"])
def test_results_come_while_the_sound_goes(krait_site: Serve, start: Start, place: str) -> None:
    alone = place == "a site of its own"
    site = krait_site(SITES / "transcriber" if alone else SITES)
    program = start(site.port, path=PATH if alone else f"/transcriber{PATH}")
    program.tell("transcribe", tenths=70, pause=0.01)
    assert program.wait_for("transcribed")["text"].startswith("2.0 s of pcm, 64,000 bytes")
    deltas = program.all_of("delta")
    assert [delta["end"] for delta in deltas if not delta["interim"]] == [5.0, 7.0]
    assert sum(delta["interim"] for delta in deltas) >= 20
    assert len(program.all_of("utterance_start")) == len(program.all_of("utterance_done")) == 2
    program.tell("close_pool")
    program.wait_for("done", command="close_pool")
    eventually(lambda: not site.server.sessions)
    assert program.finish() == 0


def test_one_connection_takes_one_task_after_the_other(site: SiteServer, start: Start) -> None:
    """After a task audex reads away for two seconds what may still come; then the connection is free again."""
    program = start(site.port)
    ids = set()
    for name in ("first", "second"):
        program.tell("transcribe", tenths=10, name=name)
        assert program.wait_for("transcribed", name=name)["text"].startswith("1.0 s")
        ids |= {session.id for session in site.server.sessions}

        def is_free() -> bool:
            program.tell("pool_of")
            return bool(program.wait_for("pool")["available"] == 1)

        eventually(is_free)
    assert len(ids) == 1


def test_a_model_that_there_is_not_fails_the_task_alone(site: SiteServer, start: Start) -> None:
    program = start(site.port)
    program.tell("renew_client", model="whisper")
    program.wait_for("done", command="renew_client")
    program.tell("transcribe", tenths=1)
    error = program.wait_for("error", command="transcribe")
    assert error["kind"] == "TranscriptionError"
    assert "ModelNotFound" in error["text"]
    program.tell("renew_client")
    program.tell("transcribe", tenths=10)
    program.wait_for("transcribed")


def test_too_much_sound_fails_the_task_with_words(
    site: SiteServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(site)
    program = start(site.port)
    monkeypatch.setitem(module("_tasks"), "MAX_TASK_BYTES", 32_000)
    program.tell("transcribe", tenths=50)
    error = program.wait_for("error", command="transcribe")
    assert error["kind"] == "TranscriptionError"
    assert "AudioTooLong" in error["text"]
    assert "32,000 bytes" in error["text"]


# ---- who may come in


def test_a_wrong_key_is_refused(site: SiteServer, start: Start) -> None:
    program = start(site.port, key="wrong")
    program.tell("open")
    error = program.wait_for("error", command="open")
    assert error["kind"] == "ConnectionUnavailableError"
    assert "401" in error["text"]
    assert not site.server.sessions


# ---- many at once


def test_fifty_tasks_at_once_on_one_pool(site: SiteServer, start: Start) -> None:
    program = start(site.port)
    program.tell("transcribe_at_once", tasks=50, tenths=20)
    done = program.wait_for("transcribed_at_once", timeout=60)
    assert (done["count"], len(done["texts"])) == (50, 1)
    program.tell("close_pool")
    program.wait_for("done", command="close_pool")
    eventually(lambda: not site.server.sessions)


def test_fifty_threads(site: SiteServer, start: Start) -> None:
    """Its pool belongs to one event loop, so each thread has its own."""
    program = start(site.port)
    program.tell("transcribe_in_threads", threads=50, tenths=20)
    done = program.wait_for("transcribed_in_threads", timeout=60)
    assert (done["count"], len(done["texts"])) == (50, 1)
    eventually(lambda: not site.server.sessions)


def test_a_pool_uses_one_connection_for_those_who_come_one_after_the_other(site: SiteServer, start: Start) -> None:
    program = start(site.port)
    program.tell("lease", times=20, size=2)
    leased = program.wait_for("leased")
    assert (leased["different"], leased["total"]) == (1, 1)
    eventually(lambda: not site.server.sessions)


# ---- a connection


@pytest.mark.parametrize("compress", [False, True])
def test_compression_is_taken_where_the_server_has_it(krait_site: Serve, start: Start, compress: bool) -> None:
    site = krait_site(SITES / "transcriber", compress=compress)
    program = start(site.port)
    program.tell("open")
    assert program.wait_for("opened")["extensions"] == (["permessage-deflate"] if compress else [])
    program.tell("transcribe", tenths=60)
    assert program.wait_for("transcribed")["text"].startswith("1.0 s")


def test_a_connection_that_is_idle_is_closed_by_its_client(site: SiteServer, start: Start) -> None:
    program = start(site.port)
    program.tell("open", idle_timeout=0.5)
    program.wait_for("opened")
    (session,) = site.server.sessions
    program.tell("release")
    eventually(lambda: session.close_code == 1000, what="its close")
    program.tell("is_connected")
    assert program.wait_for("is_connected")["value"] is False


def test_a_connection_that_is_idle_is_closed_by_the_server(
    site: SiteServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(site)
    monkeypatch.setitem(module("_tasks"), "IDLE_TIMEOUT", 5.0)  # time to hear: afterwards it has another word for it
    program = start(site.port)
    program.tell("open")
    program.wait_for("opened")
    program.tell("hear")
    error = program.wait_for("error", command="hear")
    assert error["kind"] == "ConnectionClosedError"
    assert "nothing came for 5 s" in error["text"]


def test_pings_are_answered(site: SiteServer, start: Start) -> None:
    program = start(site.port)
    program.tell("open", ping_interval=0.2, ping_timeout=5)
    program.wait_for("opened")
    (session,) = site.server.sessions
    program.tell("ping")
    program.wait_for("done", command="ping")
    program.tell("say_text", text="{")
    answers(program, event="task-failed")
    assert session.close_code is None


def test_a_connection_that_is_lost_is_an_error_and_the_next_one_works(site: SiteServer, start: Start) -> None:
    with Proxy(site.port) as proxy:
        program = start(proxy.port)
        program.tell("open")
        program.wait_for("opened")
        program.tell("hear")
        program.wait_for("hears")
        proxy.reset()
        assert program.wait_for("error", command="hear")["kind"] == "ConnectionClosedError"
        program.tell("transcribe", tenths=10)
        program.wait_for("transcribed")


def test_after_a_restart_the_next_task_gets_a_new_connection(krait_site: Serve, start: Start, own_port: int) -> None:
    site = krait_site(SITES / "transcriber", port=own_port)
    program = start(site.port)
    program.tell("transcribe", tenths=10, name="before")
    program.wait_for("transcribed", name="before")
    site.close()
    krait_site(SITES / "transcriber", port=site.port)
    program.tell("transcribe", tenths=10, name="after")
    program.wait_for("transcribed", name="after")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("garbage", "InvalidParameter"),
        ("[" * 10_000, "InvalidParameter"),
        ('{"header": {"action": "finish-task", "task_id": "x"}, "payload": {}}', "UnknownTask"),
        ('{"header": {"action": "run-task", "task_id": "x"}, "payload": {"model": "x"}}', "ModelNotFound"),
    ],
)
def test_what_is_wrong_is_answered_and_hurts_no_other_connection(
    site: SiteServer, start: Start, text: str, code: str
) -> None:
    program = start(site.port)
    program.tell("open")
    program.wait_for("opened")
    (session,) = site.server.sessions
    program.tell("say_text", text=text)
    assert answers(program, event="task-failed", error_code=code)["error_message"]
    program.tell("say_bytes", count=100)
    answers(program, event="task-failed", error_code="InvalidParameter")
    program.tell("transcribe", tenths=10)
    program.wait_for("transcribed")
    program.tell("say_bytes", count=(1 << 20) + 1)
    eventually(lambda: session.close_code == 1009)
    program.tell("transcribe", tenths=10, name="after")
    program.wait_for("transcribed", name="after")
