"""A server under attack, and what must hold after every attack: others are served, nothing is left, nothing is logged
as our error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attacks.support import Attacked
from tests.integration.support import no_leaks


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Attacked]]:
    """The server of all tests of a module that need no settings of their own; made when the first one asks."""
    servers: list[Attacked] = []

    def serve() -> Attacked:
        if not servers:
            servers.append(Attacked(tmp_path_factory.mktemp("shared")))
        return servers[0]

    with no_leaks():
        yield serve
        for attacked in servers:
            attacked.server.close()


@pytest.fixture
def attack(
    shared: Callable[[], Attacked],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Callable[..., Attacked]]:
    """``attack(max_message_size=1000)`` serves the site that is attacked."""
    caplog.set_level(logging.WARNING, "krait_ws")
    used: list[Attacked] = []

    def serve(**options: object) -> Attacked:
        used.append(Attacked(tmp_path / f"site{len(used)}", **options) if options else shared())
        return used[-1]

    yield serve
    own = [attacked for attacked in used if attacked.has_options]
    try:
        for attacked in used:
            attacked.serves_others()
            attacked.lets_go()
    finally:
        for attacked in own:
            attacked.server.close()
    printed = capfd.readouterr().err
    assert "Traceback" not in printed, printed
    records = [*caplog.get_records("call"), *caplog.records]  # of the attack, and since
    ours = [record.getMessage() for record in records if record.exc_info or "error of krait-ws" in record.msg]
    assert not ours, ours
