"""Attacks on the site over the wire: nothing outside it, nothing private and no source is ever served."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from krait_ws.testing import SiteServer
from tests.integration.support import RawClient, raw_get, upgrade_request

Serve = Callable[..., SiteServer]

SECRET = "the-secret-content"
ROUTE = f"import krait_ws\n# {SECRET}\nkrait_ws.response = krait_ws.Response('answer of a script')\n"


@pytest.fixture
def site(serve_files: Serve, tmp_path: Path) -> SiteServer:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.txt").write_text(SECRET)
    (tmp_path / "outside/secret.py").write_text(ROUTE)
    (tmp_path / "outside/index.html").write_text(SECRET)
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "site-too").mkdir()
    (tmp_path / "site-too/secret.txt").write_text(SECRET)
    site = serve_files(
        {
            "index.html": "home",
            "route.py": ROUTE,
            "UPPER.PY": ROUTE,
            "folder/page.html": "page",
            "folder/route.py": ROUTE,
            "_private.py": ROUTE,
            "_private.txt": SECRET,
            "_private/page.html": SECRET,
            "_private/index.html": SECRET,
            ".hidden": SECRET,
            ".hidden.txt": SECRET,
            ".git/config": SECRET,
            "folder/_private.html": SECRET,
            "folder/.hidden": SECRET,
            "__init__.py": ROUTE,
            "__pycache__/route.cpython-311.pyc": SECRET,
            "[room].py": "import krait_ws\nroom = krait_ws.request.params['room']\n"
            "krait_ws.response = krait_ws.Response('room ' + room)\n",
        }
    )
    links = {
        "link.txt": "../outside/secret.txt",
        "absolute.txt": str(tmp_path / "secret.txt"),
        "linked": "../outside",
        "linked.py": "../outside/secret.py",
        "parent": "..",
        "inner.txt": "_private.txt",
        "inner": "_private",
        "inner.html": ".hidden",
        "source.txt": "route.py",
        "dangling.txt": "nowhere",
        "loop.txt": "loop.txt",
    }
    for name, target in links.items():
        os.symlink(target, tmp_path / "site" / name)
    os.mkfifo(tmp_path / "site/pipe.txt")
    return site


TARGETS = [
    b"/../secret.txt",
    b"/../../../../../../../../etc/passwd",
    b"/folder/../../secret.txt",
    b"/folder/../_private.txt",
    b"/../site-too/secret.txt",
    b"/./../secret.txt",
    b"/%2e%2e/secret.txt",
    b"/%2E%2E/secret.txt",
    b"/.%2e/secret.txt",
    b"/..%2fsecret.txt",
    b"/%2e%2e%2fsecret.txt",
    b"/%252e%252e/secret.txt",
    b"/folder%2f..%2f..%2fsecret.txt",
    b"/..%5csecret.txt",
    b"/..\\secret.txt",
    b"\\..\\secret.txt",
    b"/folder\\..\\..\\secret.txt",
    b"/%c0%ae%c0%ae/secret.txt",
    b"/%c0%ae%c0%ae%c0%afsecret.txt",
    b"/\xc0\xae\xc0\xae/secret.txt",
    b"/..%00/secret.txt",
    b"/.../secret.txt",
    b"/....//secret.txt",
    b"/_private.txt%00.html",
    b"/_private.txt%00",
    b"/route.py%00",
    b"/route.py%00.txt",
    b"/%00",
    b"//secret.txt",
    b"//etc/passwd",
    b"///etc/passwd",
    b"/folder//page",
    b"//folder/page",
    b"/etc/passwd",
    b"/%2fetc%2fpasswd",
    b"/%2f/etc/passwd",
    b"/c:/secret.txt",
    b"/file:///etc/passwd",
    b"/route.py",
    b"/route.PY",
    b"/route%2epy",
    b"/route.py/",
    b"/route.py.",
    b"/route.py%20",
    b"/route.py::$DATA",
    b"/route.pyc",
    b"/UPPER.PY",
    b"/UPPER.py",
    b"/folder/route.py",
    b"/source.txt",
    b"/_private",
    b"/_private/",
    b"/_private.py",
    b"/_private.txt",
    b"/_private/page",
    b"/_private/page.html",
    b"/%5fprivate.txt",
    b"/folder/_private",
    b"/folder/_private.html",
    b"/.hidden",
    b"/.hidden.txt",
    b"/%2ehidden",
    b"/.git/config",
    b"/folder/.hidden",
    b"/__init__",
    b"/__init__.py",
    b"/__pycache__/route.cpython-311.pyc",
    b"/link.txt",
    b"/absolute.txt",
    b"/linked/secret.txt",
    b"/linked/secret",
    b"/linked/",
    b"/linked",
    b"/parent/secret.txt",
    b"/parent/outside/secret.txt",
    b"/parent/site/route.py",
    b"/inner.txt",
    b"/inner/page",
    b"/inner/",
    b"/inner",
    b"/dangling.txt",
    b"/loop.txt",
    b"/pipe.txt",
    b"/folder/page.html/../../../secret.txt",
    b"/folder/page.html/",
    b"/" + b"a/" * 2000,
    b"/" + b"../" * 500 + b"secret.txt",
    b"/" + b"x" * 5000,
    b"/[room].py",
    b"/%5Broom%5D.py",
    b"http://localhost/../secret.txt",
    b"http://localhost/_private.txt",
    b"../secret.txt",
    b"*",
    b"",
]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
def test_attacks(site: SiteServer, method: bytes) -> None:
    for target in TARGETS:
        answer = raw_get(site.port, target, method=method)
        shown = target[:80]
        assert SECRET.encode() not in answer.body, shown
        assert b"root:" not in answer.body, shown
        assert b"import krait_ws" not in answer.body, shown
        assert answer.status < 500, (shown, answer.status)
        if answer.status < 300:
            # A name that is no file's may be a room's; it must be a plain name then.
            assert answer.body.startswith(b"room ") or method == b"HEAD" or target in (b"*", b""), (shown, answer)
            room = answer.body.removeprefix(b"room ")
            assert b"/" not in room, shown
            assert b"\x00" not in room, shown
            assert not room.startswith((b".", b"_")), shown
        if answer.status in (301, 302, 303, 307, 308):
            assert not answer.headers["location"].startswith(("//", "/\\")), (shown, answer)
    assert raw_get(site.port, b"/route").body == b"answer of a script"
    assert raw_get(site.port, b"/folder/page").body == b"page"
    assert raw_get(site.port, b"/hall").body == b"room hall"


def test_attacks_by_upgrade(site: SiteServer) -> None:
    for target in TARGETS:
        if not target.isascii() or b" " in target or not target:
            continue
        with RawClient(site.port, upgrade=False) as client:
            client.send(upgrade_request(target.decode()))
            client.read_head()
            assert 400 <= client.status < 500 or client.status == 200, (target[:80], client.head)
            assert SECRET not in client.head


def test_a_linked_script_outside_the_site_does_not_run(site: SiteServer) -> None:
    assert b"answer of a script" not in raw_get(site.port, b"/linked").body
    assert b"answer of a script" not in raw_get(site.port, b"/linked/secret").body


def test_a_redirect_cannot_lead_to_another_host(site: SiteServer) -> None:
    for target in (b"//evil.example/folder", b"//evil.example/%2e%2e/folder", b"/\\evil.example/folder", b"//folder"):
        answer = raw_get(site.port, target)
        location = answer.headers.get("location", "")
        assert "evil" not in location
        assert not location.startswith("//")


def test_header_injection_by_the_path_or_query(serve_files: Serve) -> None:
    site = serve_files({"folder/index.html": "x"})
    for target in (b"/folder?a=%0d%0aX-Injected:%20yes", b"/folder%0d%0aX-Injected:%20yes"):
        answer = raw_get(site.port, target)
        assert "x-injected" not in answer.headers
