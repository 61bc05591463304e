"""A client, a real proxy with the configuration of the page, and krait-ws on its Unix socket."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.operations.conftest import Certificate
from tests.production.conftest import PATIENCE, eventually, listens, program, unchecked

SOCKET = "/run/krait-ws/krait.sock"


def replaced(text: str, **values: str) -> str:
    """The text with other places; each of them must be there."""
    for old, new in values.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def nginx(
    tmp_path: Path,
    shown: dict[str, str],
    certificate: Certificate,
    free_port: int,
    krait: Callable[..., str],
    start: Callable[..., subprocess.Popen[bytes]],
) -> Callable[..., int]:
    """nginx in front of krait-ws, on a port that is given back."""

    def nginx(*flags: str, **values: str) -> int:
        port = free_port
        server = replaced(
            shown["deploy/chat.conf"],
            **{
                SOCKET: krait(*flags),
                "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
                "/etc/ssl/chat.crt": str(certificate.cert),
                "/etc/ssl/chat.key": str(certificate.key),
                **values,
            },
        )
        (tmp_path / "chat.conf").write_text(server)
        places = "\n".join(
            f"{kind}_temp_path {tmp_path}/temp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(
            f"daemon off;\nmaster_process off;\npid {tmp_path}/nginx.pid;\nerror_log stderr;\n"
            f"{shown['deploy/nginx.conf']}\n"
            f"http {{\naccess_log off;\n{places}\ninclude {tmp_path}/chat.conf;\n}}\n"
        )
        command = [program("nginx"), "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=30, check=False)
        assert checked.returncode == 0, checked.stderr
        process = start(command)
        eventually(lambda: process.poll() is not None or listens(("127.0.0.1", port)), "nginx does not listen")
        return port

    return nginx


@pytest.fixture
def caddy(
    tmp_path: Path,
    shown: dict[str, str],
    free_port: int,
    krait: Callable[..., str],
    start: Callable[..., subprocess.Popen[bytes]],
) -> Callable[..., int]:
    """Caddy in front of krait-ws, with a certificate of its own making."""

    def caddy(*flags: str) -> int:
        port = free_port
        site = replaced(
            shown["deploy/Caddyfile"],
            **{"chat.example.com": f"https://localhost:{port}", f"unix/{SOCKET}": f"unix/{krait(*flags)}"},
        )
        options = "{\n\tadmin off\n\tlocal_certs\n\tskip_install_trust\n\tauto_https disable_redirects\n}\n"
        (tmp_path / "Caddyfile").write_text(options + site)
        command = [program("caddy"), "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
        process = start(command, HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
        eventually(lambda: process.poll() is not None or listens(("127.0.0.1", port)), "Caddy does not listen")
        eventually(lambda: process.poll() is not None or answers(port), "Caddy does not answer")
        return port

    return caddy


def answers(port: int) -> bool:
    try:
        return get(port) == b"<h1>home</h1>"
    except OSError:
        return False


def get(port: int) -> bytes:
    with urllib.request.urlopen(f"https://localhost:{port}/", timeout=10, context=unchecked()) as answer:
        body: bytes = answer.read()
        return body


def client(port: int, **options: Any) -> Any:
    return connect(f"wss://localhost:{port}/echo", ssl=unchecked(), proxy=None, **options)


@pytest.fixture(params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest) -> Callable[..., int]:
    found: Callable[..., int] = request.getfixturevalue(request.param)
    return found


def test_pages_and_websockets_come_through(proxy: Callable[..., int]) -> None:
    port = proxy()
    assert get(port) == b"<h1>home</h1>"
    with client(port, origin=f"https://localhost:{port}") as socket:
        assert socket.recv(10) == f"127.0.0.1 https localhost:{port}"  # as the browser sees it, not as the proxy
        for message in ("text", b"\x00\xff" * 50_000, ""):
            socket.send(message)
            assert socket.recv(10) == message


def test_a_header_that_a_client_makes_up_is_not_believed(proxy: Callable[..., int]) -> None:
    made_up = {"X-Forwarded-For": "10.9.9.9", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil.example"}
    port = proxy()
    with client(port, additional_headers=made_up) as socket:
        assert socket.recv(10) == f"127.0.0.1 https localhost:{port}"


def test_pages_of_other_sites_may_not_connect(proxy: Callable[..., int]) -> None:
    port = proxy()
    for origin in ("https://evil.example", f"http://localhost:{port}"):
        with pytest.raises(InvalidStatus) as refused, client(port, origin=origin):
            pass
        assert refused.value.response.status_code == 403


def test_close_codes_come_through_both_ways(proxy: Callable[..., int]) -> None:
    with client(proxy()) as socket:
        socket.recv(10)
        socket.send("close")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(10)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as told")


def test_pings_keep_a_silent_connection_through_nginx(nginx: Callable[..., int]) -> None:
    """With a tenth of the times of the page: silence is longer than what nginx allows, the pings are not. What is left
    between the two is for a busy machine."""
    port = nginx("--ping-interval", "2", **{"proxy_read_timeout 60s": "proxy_read_timeout 6s"})
    with client(port, ping_interval=None) as socket:
        socket.recv(10)
        time.sleep(8)
        socket.send("still here")
        assert socket.recv(10) == "still here"


def test_without_pings_nginx_cuts_a_silent_connection(nginx: Callable[..., int]) -> None:
    """Else the test above would say nothing."""
    port = nginx("--ping-interval", "0", **{"proxy_read_timeout 60s": "proxy_read_timeout 6s"})
    with client(port, ping_interval=None) as socket:
        socket.recv(10)
        with pytest.raises(ConnectionClosed):
            socket.recv(PATIENCE)
