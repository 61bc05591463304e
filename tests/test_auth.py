"""Basic, Bearer and signed cookies: who comes in, what the others are told, with a real server."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
from itsdangerous import URLSafeTimedSerializer
from werkzeug.exceptions import BadRequest

import krait_ws
from krait_ws import auth
from krait_ws.testing import Refused, SiteServer
from tests.helpers import http_request, upgrade_request
from tests.integration.support import http_exchange
from tests.integration.support import upgrade_request as raw_upgrade

SECRET = "a secret of more than 16 bytes"


def basic(text: str | bytes) -> str:
    return "Basic " + base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def asking(header: str | None) -> Any:
    return upgrade_request("/", [] if header is None else [("Authorization", header)])


def challenge_of(error: auth.Unauthorized) -> str:
    response = error.get_response()
    assert response.status_code == 401
    return str(response.headers["WWW-Authenticate"])


# ---- Basic


@pytest.mark.parametrize(
    ("header", "user"),
    [
        (basic("ada:f6b1c2"), "ada"),
        (basic("ada:f6b1c2").replace("Basic", "bASIC"), "ada"),
        (basic("ada:f6b1c2").replace("Basic ", "Basic    "), "ada"),
        (basic("Žofie:π:2"), "Žofie"),
    ],
)
def test_basic_lets_in(header: str, user: str) -> None:
    users = {"bob": "x", "ada": "f6b1c2", "Žofie": "π:2"}
    assert auth.require_basic(asking(header), users) == user
    assert auth.require_basic(http_request(headers={"Authorization": header}), users) == user


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer abc",
        "Negotiate abc",
        basic("ada:"),
        basic("ada:wrong"),
        basic(":f6b1c2"),
        basic("bob:f6b1c2"),
        basic("nobody:f6b1c2"),
        basic("ada:f6b1c2 "),
        basic("ADA:f6b1c2"),
    ],
)
def test_basic_keeps_out(header: str | None) -> None:
    with pytest.raises(auth.Unauthorized) as error:
        auth.require_basic(asking(header), {"ada": "f6b1c2", "bob": "x"}, realm="the lab")
    assert challenge_of(error.value) == 'Basic realm="the lab", charset="UTF-8"'
    assert not error.value.close


GOOD = basic("ada:f6b1c2")


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic YQ",
        basic("no colon"),
        basic(b"ada:\xff"),
        basic("ada:f6b1c2\n"),
        basic("ada\x00:f6b1c2"),
        f"{GOOD} {GOOD}",
        f"{GOOD},{GOOD}",
        f"{GOOD},",
        f",{GOOD}",
        f"Bearer abc,{GOOD}",
        f"Digest a=b,{GOOD}",
    ],
)
def test_basic_that_cannot_be_read_is_400(header: str) -> None:
    with pytest.raises(BadRequest) as error:
        auth.require_basic(asking(header), lambda *_: True)
    response = error.value.get_response()
    assert response.status_code == 400
    assert "f6b1c2" not in response.get_data(as_text=True)


def test_a_function_decides_about_basic() -> None:
    asked = []

    def check(user: str, password: str) -> Any:
        asked.append((user, password))
        return {"id": 7} if password == "one" else password == "two"

    assert auth.require_basic(asking(basic("ada:one")), check) == {"id": 7}
    assert auth.require_basic(asking(basic("ada:two")), check) == "ada"
    with pytest.raises(auth.Unauthorized):
        auth.require_basic(asking(basic("ada:three")), check)
    with pytest.raises(auth.Unauthorized):
        auth.require_basic(asking(None), check)
    assert asked == [("ada", "one"), ("ada", "two"), ("ada", "three")]


# ---- Bearer


def test_bearer_lets_in() -> None:
    tokens = {"ada": "abc.DEF-_~+/=", "bob": "b" * 40}
    assert auth.require_bearer(asking("Bearer abc.DEF-_~+/="), tokens) == "ada"
    assert auth.require_bearer(asking("bearer " + "b" * 40), tokens) == "bob"
    assert auth.require_bearer(asking("Bearer x"), lambda token: [token]) == ["x"]


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        (None, 'Bearer realm="krait-ws"'),
        (GOOD, 'Bearer realm="krait-ws"'),
        ("Bearer abd", 'Bearer realm="krait-ws", error="invalid_token"'),
        ("Bearer ab", 'Bearer realm="krait-ws", error="invalid_token"'),
        ("Bearer abcd", 'Bearer realm="krait-ws", error="invalid_token"'),
    ],
)
def test_bearer_keeps_out(header: str | None, challenge: str) -> None:
    for check in ({"ada": "abc"}, lambda token: None):
        with pytest.raises(auth.Unauthorized) as error:
            auth.require_bearer(asking(header), check)
        assert challenge_of(error.value) == challenge


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer a b", "Bearer a\tb", "Bearer a,Bearer a", "Bearer ä", 'Bearer "a"']
)
def test_bearer_that_cannot_be_read_is_400(header: str) -> None:
    with pytest.raises(BadRequest):
        auth.require_bearer(asking(header), lambda token: True)


# ---- signed cookies


def signed(value: Any, *, name: str = "session", secret: Any = SECRET) -> str:
    response = krait_ws.Response()
    auth.set_signed_cookie(response, name, value, secret)
    return response.headers["Set-Cookie"]


def with_cookie(header: str) -> Any:
    return upgrade_request("/", [("Cookie", header)])


def test_a_signed_cookie_comes_back() -> None:
    header = signed({"user": "Žofie", "roles": [1, 2]})
    pair, _, attributes = header.partition("; ")
    assert set(attributes.split("; ")) == {"Secure", "HttpOnly", "Max-Age=86400", "Path=/", "SameSite=Lax"} | {
        part for part in attributes.split("; ") if part.startswith("Expires=")
    }
    found = auth.require_signed_cookie(with_cookie(f"a=b; {pair}"), "session", SECRET)
    assert found == {"user": "Žofie", "roles": [1, 2]}
    response = krait_ws.Response()
    auth.set_signed_cookie(response, "session", 1, SECRET, secure=False, max_age=10)
    assert "Secure" not in response.headers["Set-Cookie"]
    assert "Max-Age=10;" in response.headers["Set-Cookie"]


@pytest.mark.parametrize(
    "cookie",
    [
        "",
        "session=",
        "session=x",
        "session=a.b.c",
        "other=" + signed("ada").partition("=")[2].partition(";")[0],
        signed("ada", name="other").partition(";")[0].replace("other", "session"),
        signed("ada", secret="another secret of 16 bytes").partition(";")[0],
        signed("ada").partition(";")[0] + "A",
        "session=A" + signed("ada").partition(";")[0].partition("=")[2],
        "session=" + "x" * 100_000,
    ],
    ids=["none", "empty", "no signature", "dots", "another name", "signed for another name", "another secret",
         "longer signature", "longer value", "very long"],
)  # fmt: skip
def test_what_is_no_signed_cookie_of_ours_keeps_out(cookie: str) -> None:
    with pytest.raises(auth.Unauthorized) as error:
        auth.require_signed_cookie(with_cookie(cookie), "session", SECRET)
    assert challenge_of(error.value) == 'Cookie realm="krait-ws"'


def test_an_old_cookie_keeps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = signed("ada").partition(";")[0]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100)
    assert auth.require_signed_cookie(with_cookie(pair), "session", SECRET, max_age=200) == "ada"
    with pytest.raises(auth.Unauthorized):
        auth.require_signed_cookie(with_cookie(pair), "session", SECRET, max_age=50)


def test_secrets_can_be_changed() -> None:
    old, new = "the old secret, 16 bytes", b"the new secret, 16 bytes"
    pair = signed("ada", secret=old).partition(";")[0]
    assert auth.require_signed_cookie(with_cookie(pair), "session", [new, old]) == "ada"
    newer = signed("ada", secret=[new, old]).partition(";")[0]
    assert auth.require_signed_cookie(with_cookie(newer), "session", new) == "ada"
    with pytest.raises(auth.Unauthorized):
        auth.require_signed_cookie(with_cookie(newer), "session", old)


def test_another_program_with_the_secret_but_for_another_purpose_cannot_sign() -> None:
    other = URLSafeTimedSerializer(SECRET).dumps("ada")
    with pytest.raises(auth.Unauthorized):
        auth.require_signed_cookie(with_cookie(f"session={other}"), "session", SECRET)


# ---- mistakes of the script's author


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: auth.require_basic(None, {}), TypeError),
        (lambda: auth.require_basic(asking(GOOD), {"ada": ""}), ValueError),
        (lambda: auth.require_basic(asking(GOOD), {"a:b": "c"}), ValueError),
        (lambda: auth.require_basic(asking(None), {}, realm='a"b'), ValueError),
        (lambda: auth.require_basic(asking(None), {}, realm="a\r\nX: y"), ValueError),
        (lambda: auth.require_basic(asking(None), {}, realm="ä"), ValueError),
        (lambda: auth.require_bearer(asking("Bearer a"), {"": "a"}), ValueError),
        (lambda: auth.require_bearer(asking("Bearer a"), {"ada": ""}), ValueError),
        (lambda: auth.require_signed_cookie(asking(None), "session", ""), ValueError),
        (lambda: auth.require_signed_cookie(asking(None), "session", []), ValueError),
        (lambda: auth.require_signed_cookie(asking(None), "session", [SECRET, "short"]), ValueError),
        (lambda: auth.set_signed_cookie(krait_ws.Response(), "session", "ada", b"short"), ValueError),
        (lambda: auth.set_signed_cookie(krait_ws.Response(), "session", object(), SECRET), TypeError),
        (lambda: auth.ClosingResponse(1006), ValueError),
        (lambda: auth.ClosingResponse(4401, "x" * 200), ValueError),
    ],
)
def test_a_dangerous_setting_is_an_error(call: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


# ---- in route scripts

FUNCTION = """
    from krait_ws import Response, auth
    from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

    class Hello(WebsocketsCtrlBase):
        def __init__(self, user):
            super().__init__()
            self.user = user

        def on_thread_start(self):
            self.push_out_message(self.user)

    def websocket(request):
        return WebsocketsResponse(Hello({call}))

    def http(request):
        return Response({call})
"""
SCRIPT = """
    import krait_ws
    from krait_ws import auth, websockets

    class Hello(websockets.WebsocketsCtrlBase):
        def on_thread_start(self):
            self.push_out_message(user)

    request = {request}
    user = {call}
    if websockets.request is None:
        krait_ws.response = krait_ws.Response(user)
    else:
        websockets.response = websockets.WebsocketsResponse(Hello())
"""
CALLS = {
    "basic": 'auth.require_basic(request, {"ada": "f6b1c2"})',
    "bearer": 'auth.require_bearer(request, {"ada": "f6b1c2"})',
    "cookie": f'auth.require_signed_cookie(request, "session", {SECRET!r})',
}
PROOFS = {
    "basic": {"Authorization": GOOD},
    "bearer": {"Authorization": "Bearer f6b1c2"},
    "cookie": {"Cookie": signed("ada").partition(";")[0]},
}
FORMS = {
    "function": FUNCTION,
    "script": SCRIPT.replace("{request}", "websockets.request or krait_ws.request"),
    "script-http": SCRIPT.replace("{request}", "krait_ws.request"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CALLS)
def test_one_line_of_a_route_script(
    kind: str,
    form: str,
    site_folder: Callable[..., Any],
    krait_site: Callable[..., SiteServer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = krait_site(site_folder({"index.py": FORMS[form].replace("{call}", CALLS[kind])}))
    with site.connect("/", headers=PROOFS[kind]) as client:
        client.expect("ada")
    assert site.get("/", headers=PROOFS[kind]).text == "ada"
    scheme = kind.title()
    for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer abc"}, {"Cookie": "session=x"}):
        with pytest.raises(Refused) as refused:
            site.connect("/", headers=headers)
        assert refused.value.status == 401
        assert refused.value.headers["WWW-Authenticate"].startswith(f'{scheme} realm="krait-ws"')
        answer = site.get("/", headers=headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith(f'{scheme} realm="krait-ws"')
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_several_authorization_headers_are_refused(
    kind: str, site_folder: Callable[..., Any], krait_site: Callable[..., SiteServer]
) -> None:
    site = krait_site(site_folder({"index.py": FUNCTION.replace("{call}", CALLS[kind])}))
    good = f"Authorization: {PROOFS[kind]['Authorization']}"
    for headers in (
        (good, good),
        (good, "Authorization: Basic eDp5"),
        (good, "authorization: "),
        ("AUTHORIZATION: ", good),
    ):
        (answer,) = http_exchange(site.port, raw_upgrade("/", (*headers, "Connection: Upgrade, close")))
        assert answer.status == 400, headers


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CALLS)
def test_a_browser_can_be_told_why(
    kind: str, form: str, site_folder: Callable[..., Any], krait_site: Callable[..., SiteServer]
) -> None:
    script = FORMS[form].replace("{call}", CALLS[kind].replace(")", ", close=True)"))
    site = krait_site(site_folder({"index.py": script}))
    reasons = {"basic": "Name and password are needed.", "bearer": "A token is needed.", "cookie": "Sign in first."}
    with site.connect("/") as client:
        assert client.expect_close(4401) == reasons[kind]
    with site.connect("/", protocols=["chat", "soap"]) as client:
        assert client.protocol == "chat", "a browser takes no answer without one"
        client.expect_close(4401)
    assert site.get("/").status == 401
    with site.connect("/", headers=PROOFS[kind]) as client:
        client.expect("ada")


def test_a_script_can_close_for_reasons_of_its_own(
    site_folder: Callable[..., Any], krait_site: Callable[..., SiteServer]
) -> None:
    site = krait_site(
        site_folder(
            {
                "index.py": """
                from krait_ws import auth

                def websocket(request):
                    return auth.ClosingResponse(4403, "not in this room")
                """
            }
        )
    )
    for protocols in (None, ["a", "b"]):
        with site.connect("/", protocols=protocols) as client:
            assert client.expect_close(4403) == "not in this room"
