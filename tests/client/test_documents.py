"""The client of docs/clients.md runs against the site of docs/clients.md."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from krait_ws.testing import SiteServer
from tests.client.programs import command, interrupt
from tests.docs.test_docs import document


def test_the_watch_of_the_switches(tmp_path: Path, leaves_nothing: Any) -> None:
    folder = document("docs/clients.md").write(tmp_path)
    with (
        SiteServer(folder / "sites") as site,
        subprocess.Popen(
            command("watch.py", f"ws://127.0.0.1:{site.port}/switches"),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as watch,
    ):
        try:
            assert watch.stdout is not None
            assert watch.stderr is not None
            read = watch.stdout.readline
            assert [read() for _ in range(4)] == ["initializing\n", "syncing\n", "connected\n", "hall is True\n"]
            headers = {"Authorization": "Bearer garden-of-stones"}
            with site.connect("/switches", headers=headers, timeout=20) as other:
                other.expect('{"lamp": "hall", "on": true}', 20)
                other.send('[{"lamp": "kitchen"}]')  # what breaks the other end of its own connection, not ours
                other.expect_close(1011, 20)
            with site.connect("/switches", headers=headers, timeout=20) as other:
                other.send('{"lamp": "hall", "on": false}')
                assert read() == "hall is False\n"
            interrupt(watch)
            assert watch.wait(20) == 0
            assert (watch.stdout.read(), watch.stderr.read()) == ("disconnected\n", "")
        finally:
            watch.kill()
