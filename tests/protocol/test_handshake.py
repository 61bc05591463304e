"""The opening handshake (RFC 6455 section 4.2): which request is an upgrade, and what it is answered."""

from __future__ import annotations

import base64

import pytest

from krait_ws.errors import HandshakeError
from krait_ws.protocol.handshake import (
    accept_headers,
    check_origin,
    check_upgrade,
    is_upgrade,
    parse_subprotocols,
    tries_upgrade,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def environ(**changes: str | None) -> dict[str, str]:
    """The upgrade request of section 1.2 as a WSGI environ; ``None`` leaves something out."""
    values: dict[str, str | None] = {
        "REQUEST_METHOD": "GET",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "server.example.com",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": KEY,
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
        **changes,
    }
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("websocket", True),
        ("WebSocket", True),  # Firefox once, and many clients
        ("WEBSOCKET", True),
        ("h2c, websocket", True),
        ("h2c,WebSocket", True),
        ("websocket ,\th2c", True),
        (" websocket ", True),
        ("", False),
        (" ", False),
        (",", False),
        ("h2c", False),
        ("websockets", False),
        ("web socket", False),
        ("not-websocket", False),
    ],
)
def test_which_upgrade_headers_name_websocket(header: str, expected: bool) -> None:
    assert is_upgrade({"HTTP_UPGRADE": header}) is expected
    assert is_upgrade(environ(HTTP_UPGRADE=header)) is expected


def test_a_request_without_the_header_is_no_upgrade() -> None:
    assert not is_upgrade(environ(HTTP_UPGRADE=None))


def test_a_key_alone_is_an_upgrade_wrongly_made() -> None:
    """A proxy that removes the Upgrade header leaves the key; that is told, not answered with a page."""
    assert tries_upgrade(environ(HTTP_UPGRADE=None))
    assert tries_upgrade(environ(HTTP_SEC_WEBSOCKET_KEY=None))
    assert not tries_upgrade(environ(HTTP_UPGRADE=None, HTTP_SEC_WEBSOCKET_KEY=None))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="that of section 1.2"),
        pytest.param({"HTTP_CONNECTION": "upgrade"}, id="Connection in lower case"),
        pytest.param({"HTTP_CONNECTION": "keep-alive, Upgrade"}, id="Connection with keep-alive, as Firefox"),
        pytest.param({"HTTP_CONNECTION": "keep-alive ,UPGRADE"}, id="Connection with odd blanks"),
        pytest.param({"HTTP_SEC_WEBSOCKET_PROTOCOL": "a,b"}, id="subprotocols"),
        pytest.param({"HTTP_SEC_WEBSOCKET_EXTENSIONS": "permessage-deflate; x"}, id="extensions are an offer"),
        pytest.param({"HTTP_SEC_WEBSOCKET_KEY": base64.b64encode(bytes(16)).decode()}, id="key of zeros"),
        pytest.param({"CONTENT_LENGTH": "0"}, id="an empty body"),
    ],
)
def test_requests_that_pass(changes: dict[str, str]) -> None:
    check_upgrade(environ(**changes))


@pytest.mark.parametrize(
    ("changes", "status", "headers"),
    [
        pytest.param({"REQUEST_METHOD": "POST"}, "405", {"Allow": "GET"}, id="POST"),
        pytest.param({"REQUEST_METHOD": "HEAD"}, "405", {"Allow": "GET"}, id="HEAD"),
        pytest.param({"SERVER_PROTOCOL": "HTTP/1.0"}, "505", {}, id="HTTP/1.0"),
        pytest.param({"HTTP_HOST": None}, "400", {}, id="no Host"),
        pytest.param({"HTTP_HOST": "a,b"}, "400", {}, id="two Hosts"),
        pytest.param({"CONTENT_LENGTH": "5"}, "400", {}, id="a body"),
        pytest.param({"HTTP_TRANSFER_ENCODING": "chunked"}, "400", {}, id="a body in chunks"),
        pytest.param({"HTTP_UPGRADE": None}, "400", {}, id="no Upgrade"),
        pytest.param({"HTTP_UPGRADE": "h2c"}, "400", {}, id="another Upgrade"),
        pytest.param({"HTTP_CONNECTION": None}, "400", {}, id="no Connection"),
        pytest.param({"HTTP_CONNECTION": "keep-alive"}, "400", {}, id="Connection without Upgrade"),
        pytest.param({"HTTP_CONNECTION": "not-upgrade"}, "400", {}, id="Connection with another token"),
        pytest.param({"HTTP_SEC_WEBSOCKET_VERSION": None}, "426", {"Sec-WebSocket-Version": "13"}, id="no version"),
        pytest.param({"HTTP_SEC_WEBSOCKET_VERSION": "8"}, "426", {"Sec-WebSocket-Version": "13"}, id="version 8"),
        pytest.param({"HTTP_SEC_WEBSOCKET_VERSION": "130"}, "426", {"Sec-WebSocket-Version": "13"}, id="version 130"),
        pytest.param({"HTTP_SEC_WEBSOCKET_VERSION": "13,13"}, "400", {}, id="two versions"),
        pytest.param({"HTTP_SEC_WEBSOCKET_KEY": f"{KEY},{KEY}"}, "400", {}, id="two keys"),
        pytest.param({"HTTP_SEC_WEBSOCKET_EXTENSIONS": "a b"}, "400", {}, id="extensions cannot be read"),
        pytest.param({"HTTP_SEC_WEBSOCKET_KEY": None}, "400", {}, id="no key"),
        pytest.param({"HTTP_SEC_WEBSOCKET_KEY": ""}, "400", {}, id="empty key"),
        pytest.param({"HTTP_SEC_WEBSOCKET_KEY": "not base64!"}, "400", {}, id="key is no base64"),
        pytest.param({"HTTP_SEC_WEBSOCKET_KEY": "é" * 24}, "400", {}, id="key is no ASCII"),
        pytest.param({"HTTP_SEC_WEBSOCKET_KEY": base64.b64encode(bytes(15)).decode()}, "400", {}, id="key of 15 bytes"),
        pytest.param({"HTTP_SEC_WEBSOCKET_KEY": base64.b64encode(bytes(17)).decode()}, "400", {}, id="key of 17 bytes"),
        pytest.param({"HTTP_SEC_WEBSOCKET_PROTOCOL": "a b"}, "400", {}, id="subprotocol is no token"),
    ],
)
def test_requests_that_are_refused(changes: dict[str, str | None], status: str, headers: dict[str, str]) -> None:
    with pytest.raises(HandshakeError) as refused:
        check_upgrade(environ(**changes))
    assert refused.value.status.startswith(f"{status} ")
    assert headers.items() <= dict(refused.value.headers).items()
    assert refused.value.reason


def test_the_accept_header_is_that_of_the_rfc() -> None:
    assert dict(accept_headers(environ(), None, None)) == {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    }


def test_the_chosen_subprotocol_is_named() -> None:
    assert ("Sec-WebSocket-Protocol", "chat") in accept_headers(environ(), "chat", None)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("  ", None),
        ("chat", ["chat"]),
        ("a,b", ["a", "b"]),
        ("b, a", ["b", "a"]),
        (" a ,\tb  ,c ", ["a", "b", "c"]),
        ("a,,b", ["a", "b"]),
        ("Chat.V1, chat.v1", ["Chat.V1", "chat.v1"]),
        ("graphql-transport-ws", ["graphql-transport-ws"]),
    ],
)
def test_subprotocols(header: str, expected: list[str] | None) -> None:
    assert parse_subprotocols(header) == expected


@pytest.mark.parametrize("header", ["a b", 'a, "b"', "a;b", "a, (b)", "é"])
def test_subprotocols_that_cannot_be_read(header: str) -> None:
    with pytest.raises(HandshakeError, match="Sec-WebSocket-Protocol") as refused:
        parse_subprotocols(header)
    assert refused.value.status == "400 Bad Request"


@pytest.mark.parametrize(
    ("origin", "allowed", "passes"),
    [
        pytest.param(None, [], True, id="no browser"),
        pytest.param("http://server.example.com", [], True, id="the same"),
        pytest.param("http://server.example.com:80", [], True, id="the same, default port named"),
        pytest.param("HTTP://Server.Example.COM", [], True, id="the same in another case"),
        pytest.param("https://server.example.com", [], False, id="another scheme"),
        pytest.param("http://server.example.com:8080", [], False, id="another port"),
        pytest.param("http://evil.example.com", [], False, id="another host"),
        pytest.param("http://server.example.com.evil.com", [], False, id="a host that begins alike"),
        pytest.param("http://evil-server.example.com", [], False, id="a host that ends alike"),
        pytest.param("http://example.com", [], False, id="the parent domain"),
        pytest.param("null", [], False, id="null"),
        pytest.param("", [], False, id="empty"),
        pytest.param("http://server.example.com:x", [], False, id="no port"),
        pytest.param("https://other.org", ["https://other.org"], True, id="allowed"),
        pytest.param("https://other.org:8443", ["https://other.org"], False, id="allowed with another port"),
        pytest.param("https://evil.org", ["https://other.org"], False, id="not the allowed one"),
        pytest.param("https://evil.org", ["*"], True, id="all allowed"),
        pytest.param("null", ["null"], True, id="null allowed"),
        pytest.param("http://server.example.com", ["https://other.org"], True, id="the own one stays allowed"),
    ],
)
def test_origins(origin: str | None, allowed: list[str], passes: bool) -> None:
    request = {**environ(HTTP_ORIGIN=origin), "wsgi.url_scheme": "http"}
    if passes:
        check_origin(request, frozenset(allowed))
    else:
        with pytest.raises(HandshakeError) as refused:
            check_origin(request, frozenset(allowed))
        assert refused.value.status == "403 Forbidden"
