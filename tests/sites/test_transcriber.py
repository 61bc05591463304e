"""The transcriber: tasks one after the other, results while their audio streams, and clear words for what is wrong."""

from __future__ import annotations

import array
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krait_ws.testing import Client, Refused, SiteServer
from tests.integration.support import PATIENCE, eventually

SITES = Path(__file__).parents[2] / "sites"
KEY = {"Authorization": "Bearer demo-key"}
SECOND = 32_000
"""Bytes of a second of audio."""

Connect = Callable[..., Client]


@pytest.fixture(params=["a site of its own", "a part of sites"])
def everywhere(request: pytest.FixtureRequest, krait_site: Callable[..., SiteServer]) -> Connect:
    """Connects to the transcriber, wherever it is served."""
    alone = request.param == "a site of its own"
    site = krait_site(SITES / "transcriber" if alone else SITES)
    path = ("" if alone else "/transcriber") + "/api-ws/v1/inference"
    return lambda: site.connect(path, headers=KEY, timeout=PATIENCE)


@pytest.fixture
def site(krait_site: Callable[..., SiteServer]) -> SiteServer:
    return krait_site(SITES / "transcriber")


@pytest.fixture
def connect(site: SiteServer) -> Connect:
    return lambda **options: site.connect("/api-ws/v1/inference", timeout=PATIENCE, **{"headers": KEY, **options})


def module(name: str) -> dict[str, Any]:
    """The variables of a module of the transcriber that is being served."""
    (found,) = [module for key, module in list(sys.modules.items()) if key.endswith(f".{name}")]
    return vars(found)


def command(action: str, task_id: Any = "t1", **payload: Any) -> str:
    header = {"task_id": task_id, "action": action, "streaming": "duplex"}
    return json.dumps({"header": header, "payload": {**payload, "input": {}}})


def run_task(task_id: Any = "t1", **changed: Any) -> str:
    parameters = {"format": "pcm", "sample_rate": 16000}
    return command("run-task", task_id, **{"model": "paraformer-realtime-v2", "parameters": parameters, **changed})


def event(client: Client) -> tuple[str, str | None, dict[str, Any]]:
    """Name, task and payload of the next event; of a failure its code and words instead of the payload."""
    message = json.loads(client.receive(PATIENCE))
    header = message["header"]
    assert header["attributes"] == {}
    if header["event"] == "task-failed":
        return "task-failed", header["task_id"], {header["error_code"]: header["error_message"]}
    return header["event"], header["task_id"], message["payload"]


def begin(client: Client, task_id: str = "t1", **changed: Any) -> None:
    client.send(run_task(task_id, **changed))
    assert event(client) == ("task-started", task_id, {})


def result(client: Client, task_id: str = "t1") -> dict[str, Any]:
    """The sentence of the next event, which is a result."""
    name, task, payload = event(client)
    assert (name, task) == ("result-generated", task_id)
    sentence: dict[str, Any] = payload["output"]["sentence"]
    assert set(sentence) == {"begin_time", "end_time", "text", "words"}
    return sentence


def finish(client: Client, task_id: str = "t1") -> list[dict[str, Any]]:
    """Ends a task; the results that still came."""
    client.send(command("finish-task", task_id))
    results = []
    while (got := event(client))[0] == "result-generated":
        results.append(got[2]["output"]["sentence"])
    assert got == ("task-finished", task_id, {})
    return results


def expect_works(client: Client) -> None:
    """The connection takes a task."""
    begin(client, "next")
    client.send(bytes(SECOND))
    assert result(client, "next")["begin_time"] == 0
    assert finish(client, "next")[-1]["end_time"] == 1000


# ---- tasks


def test_results_come_while_audio_streams_and_the_last_one_has_an_end(everywhere: Connect) -> None:
    with everywhere() as client:
        begin(client)
        for tenths in (3, 6, 9):
            for _ in range(3):
                client.send(bytes(SECOND // 10))
            sentence = result(client)
            assert (sentence["begin_time"], sentence["end_time"]) == (0, None)
            assert f"0.{tenths} s of pcm, {tenths * SECOND // 10:,} bytes" in sentence["text"]
        client.send(bytes(SECOND // 10))
        (last,) = finish(client)
        assert (last["begin_time"], last["end_time"]) == (0, 1000)
        assert "1.0 s of pcm, 32,000 bytes" in last["text"]


def test_a_sentence_ends_and_the_next_one_begins_there(connect: Connect) -> None:
    with connect() as client:
        begin(client)
        sentences = []
        for _ in range(12):
            client.send(bytes(SECOND))
            sentences.append(result(client))
        sentences += finish(client)
        times = [(sentence["begin_time"], sentence["end_time"]) for sentence in sentences]
        assert [time for time in times if time[1]] == [(0, 5000), (5000, 10000), (10000, 12000)]
        assert times[0] == (0, None)


def test_loudness_is_that_of_the_samples_however_they_are_cut(connect: Connect) -> None:
    samples = array.array("h", [0, 16384, -5, -24576, 7] * 3200).tobytes()
    with connect() as client:
        begin(client)
        for start in range(0, len(samples), 3201):
            client.send(samples[start : start + 3201])
        texts = []
        client.send(command("finish-task"))
        while (got := event(client))[0] == "result-generated":
            texts.append(got[2]["output"]["sentence"]["text"])
        assert texts[-1] == "1.0 s of pcm, 32,000 bytes, at most 75 % loud"


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "speex", "aac", "amr"])
def test_of_a_format_whose_bytes_tell_no_time_the_clock_does(connect: Connect, audio_format: str) -> None:
    with connect() as client:
        begin(client, parameters={"format": audio_format, "sample_rate": 48000})
        client.send(b"\x00\x01\x02")
        *_, last = finish(client)  # more than one where the machine is so slow that an interim result was due
        assert re.fullmatch(rf"\d+\.\d s of {audio_format}, 3 bytes", last["text"])
        assert last["end_time"] >= 0


def test_a_connection_takes_one_task_after_the_other(everywhere: Connect) -> None:
    with everywhere() as client:
        for number in range(3):
            begin(client, f"task {number}")
            client.send(bytes(SECOND))
            assert result(client, f"task {number}")["text"].startswith("1.0 s")
            finish(client, f"task {number}")
        begin(client, "without audio")
        assert finish(client, "without audio") == []


def test_connections_do_not_disturb_each_other(connect: Connect) -> None:
    with connect() as one, connect() as two:
        begin(one)
        begin(two)
        one.send(bytes(SECOND))
        two.send(bytes(2 * SECOND))
        assert result(one)["text"].startswith("1.0 s")
        assert result(two)["text"].startswith("2.0 s")


# ---- who may come in


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic ZGVtbzpkZW1v"}])
def test_a_program_needs_the_key(connect: Connect, headers: dict[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        connect(headers=headers)
    assert refused.value.status == 401
    assert refused.value.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_page_comes_with_what_lets_it_in(site: SiteServer, connect: Connect) -> None:
    cookie = site.get("/").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    with connect(headers={"Cookie": cookie.partition(";")[0]}, origin=site.url) as client:
        expect_works(client)
    with connect(headers={}, origin=site.url) as client:
        client.expect_close(4401, PATIENCE)
    with connect(headers={"Cookie": "transcriber=x"}, origin=site.url) as client:
        client.expect_close(4401, PATIENCE)


# ---- what is wrong


def expect_failure(client: Client, code: str, task_id: str | None = None, words: str = "") -> None:
    name, task, failure = event(client)
    assert (name, task, list(failure)) == ("task-failed", task_id, [code])
    assert words in failure[code]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "{",
        "[]",
        "5",
        "null",
        "[" * 100_000,
        '{"header": {}}',
        '{"header": {"action": "run-task", "task_id": "t1"}}',
        '{"header": {"action": "run-task", "task_id": 5}, "payload": {}}',
        '{"header": {"action": 5, "task_id": "t1"}, "payload": {}}',
        command("run-task", "", model="x"),
        command("run-task", "t" * 65, model="x"),
        command("run-task", "\ud800", model="x"),
    ],
    ids=lambda wrong: repr(wrong[:50]),
)
def test_what_is_no_command_is_answered_and_the_connection_goes_on(connect: Connect, wrong: str) -> None:
    with connect() as client:
        client.send(wrong)
        expect_failure(client, "InvalidParameter")
        expect_works(client)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (run_task(model="whisper"), "ModelNotFound"),
        (run_task(model=None), "ModelNotFound"),
        (run_task(model=["x"]), "ModelNotFound"),
        (run_task(parameters=None), "InvalidParameter"),
        (run_task(parameters={"format": "pcm"}), "InvalidParameter"),
        (run_task(parameters={"format": "flac", "sample_rate": 16000}), "InvalidParameter"),
        (run_task(parameters={"format": "pcm", "sample_rate": 0}), "InvalidParameter"),
        (run_task(parameters={"format": "pcm", "sample_rate": True}), "InvalidParameter"),
        (run_task(parameters={"format": "pcm", "sample_rate": 10**400}), "InvalidParameter"),
        (command("pause-task"), "InvalidParameter"),
        (command("finish-task"), "UnknownTask"),
    ],
)
def test_a_command_that_cannot_be_done_fails_its_task_by_name(connect: Connect, wrong: str, code: str) -> None:
    with connect() as client:
        client.send(wrong)
        expect_failure(client, code, "t1")
        expect_works(client)


def test_audio_before_a_task_is_answered_once(connect: Connect) -> None:
    with connect() as client:
        for _ in range(5):
            client.send(bytes(100))
        expect_failure(client, "InvalidParameter", None, "before run-task")
        expect_works(client)


def test_a_second_task_fails_and_the_first_goes_on(connect: Connect) -> None:
    with connect() as client:
        begin(client)
        client.send(run_task("t2"))
        expect_failure(client, "TaskRunning", "t2", "t1 is running")
        client.send(command("finish-task", "t2"))
        expect_failure(client, "UnknownTask", "t2")
        client.send(bytes(SECOND))
        assert result(client)["text"].startswith("1.0 s")


def test_too_much_audio_fails_the_task_and_what_is_on_its_way_is_dropped(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect() as client:
        expect_works(client)
        monkeypatch.setitem(module("_tasks"), "MAX_TASK_BYTES", 2 * SECOND)
        begin(client)
        for _ in range(5):
            client.send(bytes(SECOND))
        assert [result(client)["end_time"], result(client)["end_time"]] == [None, None]
        expect_failure(client, "AudioTooLong", "t1", "64,000 bytes")
        expect_works(client)


def test_a_message_that_is_too_large_ends_its_own_connection_only(connect: Connect) -> None:
    with connect() as one, connect() as two:
        begin(one)
        begin(two)
        one.send(bytes((1 << 20) + 1))
        one.expect_close(1009, PATIENCE)
        two.send(bytes(SECOND))
        assert result(two)["text"].startswith("1.0 s")


def test_a_connection_on_which_nothing_comes_is_closed(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect() as client:
        expect_works(client)
    assert module("_tasks")["IDLE_TIMEOUT"] == 60
    monkeypatch.setitem(module("_tasks"), "IDLE_TIMEOUT", 0.05)
    with connect() as client:
        assert client.expect_close(1000, PATIENCE) == "nothing came for 0.05 s"
    monkeypatch.setitem(module("_tasks"), "IDLE_TIMEOUT", 60.0)
    with connect() as client:
        begin(client)
        monkeypatch.setitem(module("_tasks"), "IDLE_TIMEOUT", 0.05)
        client.send(bytes(100))  # the wait for what follows it is the short one, however slow we were before
        expect_failure(client, "Timeout", "t1")
        client.expect_close(1000, PATIENCE)


def test_a_client_that_goes_in_the_middle_of_a_task_leaves_nothing(site: SiteServer, connect: Connect) -> None:
    with connect() as client:
        begin(client)
        client.send(bytes(SECOND))
    eventually(lambda: not site.server.sessions)
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("krait-handler")])


def test_the_page_and_what_it_needs_are_served(krait_site: Callable[..., SiteServer]) -> None:
    alone, part = krait_site(SITES / "transcriber"), krait_site(SITES)
    assert alone.get("/").body == part.get("/transcriber/").body == (SITES / "transcriber/_page.html").read_bytes()
    for name in ("style.css", "demo.js", "favicon.svg"):
        assert alone.get(f"/{name}").body == (SITES / name).read_bytes()
    assert alone.get("/recorder.js").body == part.get("/transcriber/recorder.js").body
    for path in ("/setup.cfg", "/_tasks.py", "/_page.html", "/_page", "/..%2findex.html"):
        assert alone.get(path).status == 404, path
