"""Route scripts: both forms, what they may answer, loading once whatever happens at the same moment, reloading."""

from __future__ import annotations

import contextvars
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws.errors import RouteScriptError
from krait_ws.scripts import Scripts
from krait_ws.websockets import WebsocketsResponse
from tests.helpers import DEADLINE, Task, http_request, upgrade_http_request, upgrade_request

SiteFolder = Callable[[Mapping[str, str | bytes]], Path]

ACCEPT = """
    from krait_ws import websockets
    from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse
"""


class Site:
    """The scripts of a folder."""

    def __init__(self, root: Path, *, reloads: bool = False) -> None:
        self.root = root
        self.scripts = Scripts(root, reloads=reloads)

    def http(self, name: str = "page.py", url: str = "/page") -> Any:
        script = self.scripts.get(self.root / name)
        return contextvars.Context().run(script.run, http_request(url), None)

    def upgrade(self, name: str = "page.py", headers: Any = (), params: dict[str, str] | None = None) -> Any:
        script = self.scripts.get(self.root / name)
        upgrade = upgrade_request("/page", headers, params)
        return contextvars.Context().run(script.run, upgrade_http_request("/page", headers), upgrade)

    def text(self, name: str = "page.py") -> str:
        return str(self.http(name).get_data(as_text=True))


@pytest.fixture
def new_site(site_folder: SiteFolder) -> Iterator[Callable[..., Site]]:
    """``new_site({file: source}, reloads=...)``; closed at the end."""
    sites: list[Site] = []

    def make(files: Mapping[str, str | bytes], *, reloads: bool = False) -> Site:
        sites.append(Site(site_folder(files), reloads=reloads))
        return sites[-1]

    yield make
    for site in sites:
        site.scripts.close()
    for name in [name for name, module in sys.modules.items() if lies_in(module, sites)]:
        del sys.modules[name]  # one failure is to be one failure, and not the next test's


def lies_in(module: Any, sites: list[Site]) -> bool:
    """Whether a module came from a site: by its file, or by the folder of a package without one."""
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", [])]
    return any(str(place).startswith(str(site.root)) for place in places for site in sites)


NewSite = Callable[..., Site]


# ---- script form


def test_the_script_form_runs_for_each_request(new_site: NewSite) -> None:
    site = new_site(
        {
            "page.py": """
            import krait_ws
            count = globals().get("count", 0) + 1
            krait_ws.response = krait_ws.Response(f"{count} {krait_ws.request.path}")
            """
        }
    )
    assert [site.text() for _ in range(3)] == ["1 /page"] * 3


def test_the_script_form_accepts_an_upgrade(new_site: NewSite) -> None:
    site = new_site(
        {
            "page.py": ACCEPT
            + """
    if websockets.request is not None and "chat" in websockets.request.protocols:
        websockets.response = WebsocketsResponse(WebsocketsCtrlBase(), "chat")
    """
        }
    )
    answer = site.upgrade(headers=[("Sec-WebSocket-Protocol", "other, chat")])
    assert isinstance(answer, WebsocketsResponse)
    assert answer.protocol == "chat"


def test_the_script_form_sees_no_upgrade_in_a_plain_request(new_site: NewSite) -> None:
    source = """
        import krait_ws
        from krait_ws import websockets
        krait_ws.response = krait_ws.Response(repr(websockets.request))
        """
    site = new_site({"page.py": source})
    assert site.text() == "None"
    assert site.upgrade().get_data(as_text=True) != "None"


def test_a_script_that_assigns_nothing_refuses_an_upgrade_with_400_and_a_plain_request_with_426(
    new_site: NewSite,
) -> None:
    site = new_site({"page.py": "pass"})
    assert site.upgrade().status_code == 400
    plain = site.http()
    assert plain.status_code == 426
    assert plain.headers["Upgrade"] == "websocket"


def test_a_script_may_refuse_with_an_answer_of_its_own(new_site: NewSite) -> None:
    site = new_site({"page.py": "import krait_ws\nkrait_ws.response = krait_ws.Response('no', status=403)"})
    assert site.upgrade().status_code == 403


def test_a_plain_request_that_is_answered_with_a_controller_gets_426(new_site: NewSite) -> None:
    site = new_site({"page.py": ACCEPT + "    websockets.response = WebsocketsResponse(WebsocketsCtrlBase())"})
    assert isinstance(site.upgrade(), WebsocketsResponse)
    assert site.http().status_code == 426


def test_an_answer_of_one_request_is_not_seen_by_the_next(new_site: NewSite) -> None:
    site = new_site(
        {
            "page.py": """
            import krait_ws
            if krait_ws.request.path == "/first":
                krait_ws.response = krait_ws.Response("first")
            """
        }
    )
    script = site.scripts.get(site.root / "page.py")
    context = contextvars.Context()
    assert context.run(script.run, http_request("/first"), None).get_data() == b"first"
    assert context.run(script.run, http_request("/second"), None).status_code == 426


def test_a_script_has_a_name_and_a_file(new_site: NewSite) -> None:
    site = new_site({"page.py": "import krait_ws\nkrait_ws.response = krait_ws.Response(f'{__name__} {__file__}')"})
    name, file = site.text().split()
    assert name != "__main__"
    assert file == str(site.root / "page.py")


def test_a_dataclass_in_the_script_form(new_site: NewSite) -> None:
    """Failed: dataclasses look the module up by its name, and there was none."""
    site = new_site(
        {
            "page.py": """
            from __future__ import annotations
            from dataclasses import dataclass
            import krait_ws

            @dataclass
            class Point:
                x: int

            krait_ws.response = krait_ws.Response(repr(Point(1)))
            """
        }
    )
    assert site.text() == "Point(x=1)"


# ---- function form


FUNCTIONS = """
    import krait_ws
    from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

    count = 0

    def http(request):
        global count
        count += 1
        return krait_ws.Response(f"{count} {request.path}")

    def websocket(request):
        if request.protocols:
            return WebsocketsResponse(WebsocketsCtrlBase(), request.protocols[0])
"""


def test_the_function_form_is_loaded_once_and_its_state_lives_on(new_site: NewSite) -> None:
    site = new_site({"page.py": FUNCTIONS})
    assert [site.text() for _ in range(3)] == ["1 /page", "2 /page", "3 /page"]


def test_the_function_form_accepts_and_refuses(new_site: NewSite) -> None:
    site = new_site({"page.py": FUNCTIONS})
    answer = site.upgrade(headers=[("Sec-WebSocket-Protocol", "b, a")])
    assert isinstance(answer, WebsocketsResponse)
    assert answer.protocol == "b"
    assert site.upgrade().status_code == 400


@pytest.mark.parametrize(
    ("source", "http", "upgrade"),
    [
        pytest.param("def http(request): return krait_ws.Response('x', status=201)", 201, 400, id="http only"),
        pytest.param(
            "def websocket(request): return krait_ws.Response('x', status=403)", 426, 403, id="websocket only"
        ),
        pytest.param("def websocket(request): return None", 426, 400, id="refuses"),
        pytest.param("def http(request): return WerkzeugResponse('x', status=202)", 202, 400, id="werkzeug's class"),
        pytest.param("http = lambda request: krait_ws.Response('x', status=203)", 203, 400, id="assigned"),
        pytest.param("if True:\n    def http(request): return krait_ws.Response('x')", 200, 400, id="under an if"),
        pytest.param("try:\n    from _views import http\nfinally: pass", 200, 400, id="imported in a try"),
        pytest.param("from _views import other as http", 299, 400, id="imported under the name"),
    ],
)
def test_which_functions_there_may_be(new_site: NewSite, source: str, http: int, upgrade: int) -> None:
    views = """
        import krait_ws
        def http(request): return krait_ws.Response("x")
        def other(request): return krait_ws.Response(status=299)
        """
    head = "import krait_ws\nfrom werkzeug.wrappers import Response as WerkzeugResponse\n"
    site = new_site({"page.py": head + source, "_views.py": views})
    assert site.http().status_code == http
    assert site.upgrade().status_code == upgrade


def test_the_functions_get_the_request_and_its_parameters(new_site: NewSite) -> None:
    site = new_site(
        {
            "page.py": """
            import krait_ws
            from krait_ws import websockets

            def websocket(request):
                assert websockets.request is request
                return krait_ws.Response(request.params["room"])

            def http(request):
                assert krait_ws.request is request
                assert websockets.request is None
                return krait_ws.Response(request.path)
            """
        }
    )
    assert site.upgrade(params={"room": "lobby"}).get_data() == b"lobby"
    assert site.text() == "/page"


@pytest.mark.parametrize(
    "name",
    ["websocket_url = 1", "import http", "import http.client", "class Http: pass", "x = 1  # def http(request): ..."],
)
def test_what_is_no_function_form(new_site: NewSite, name: str) -> None:
    site = new_site({"page.py": f"{name}\nimport krait_ws\nkrait_ws.response = krait_ws.Response('script')"})
    assert site.text() == "script"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def http(request): return 'text'", r"http\(request\) must return .*'text'"),
        ("def http(request): return None", r"http\(request\) must return .*None"),
        ("def http(request): return 404", r"http\(request\) must return .*404"),
    ],
)
def test_a_wrong_answer_to_a_plain_request_is_told(new_site: NewSite, source: str, message: str) -> None:
    with pytest.raises(RouteScriptError, match=message):
        new_site({"page.py": source}).http()


@pytest.mark.parametrize("value", ["'text'", "False", "WebsocketsCtrlBase()"])
def test_a_wrong_answer_to_an_upgrade_is_told(new_site: NewSite, value: str) -> None:
    source = f"from krait_ws.websockets import *\ndef websocket(request): return {value}"
    with pytest.raises(RouteScriptError, match=r"page\.py: websocket\(request\) must return a WebsocketsResponse"):
        new_site({"page.py": source}).upgrade()


@pytest.mark.parametrize("name", ["http", "websocket"])
def test_an_async_function_is_refused_with_a_reason(new_site: NewSite, name: str) -> None:
    with pytest.raises(SyntaxError, match="plain function"):
        new_site({"page.py": f"async def {name}(request): ..."}).http()


DATACLASS = """
    from __future__ import annotations
    import pickle
    from dataclasses import dataclass
    from typing import get_type_hints
    import krait_ws

    @dataclass
    class Point:
        x: int

    def http(request):
        point = Point(1)
        return krait_ws.Response({answer})
"""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param("repr(point)", "Point(x=1)", id="dataclasses"),
        pytest.param("repr(get_type_hints(Point))", repr({"x": int}), id="typing"),
        pytest.param("repr(pickle.loads(pickle.dumps(point)))", "Point(x=1)", id="pickle"),
    ],
)
def test_the_module_can_be_found_by_its_name(new_site: NewSite, answer: str, expected: str) -> None:
    """Failed with pickle, which imports the module's parents first."""
    site = new_site({"chat/[room].py": DATACLASS.replace("{answer}", answer)})
    assert site.text("chat/[room].py") == expected


@pytest.mark.parametrize("form", ["script", "function"])
def test_a_script_decides_itself_about_its_annotations(new_site: NewSite, form: str) -> None:
    """Failed: scripts were compiled with the ``from __future__ import annotations`` of the module that loads them."""
    body = "class Point:\n    x: int\n"
    if form == "script":
        source = body + "krait_ws.response = krait_ws.Response(repr(Point.__annotations__['x']))"
    else:
        source = body + "def http(request): return krait_ws.Response(repr(Point.__annotations__['x']))"
    assert new_site({"page.py": "import krait_ws\n" + source}).text() == repr(int)


# ---- errors


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("1 / 0", ZeroDivisionError),
        ("import no_such_module", ModuleNotFoundError),
        ("def http(request): raise LookupError", LookupError),
        ("def http(request): ...\n1 / 0", ZeroDivisionError),
        ("def http(request:", SyntaxError),
        ("raise SystemExit", SystemExit),
    ],
)
def test_what_a_script_raises_comes_out(new_site: NewSite, source: str, error: type[BaseException]) -> None:
    site = new_site({"page.py": source})
    for _ in range(2):
        with pytest.raises(error):
            site.http()


def test_a_syntax_error_names_file_and_line(new_site: NewSite) -> None:
    with pytest.raises(SyntaxError) as failed:
        new_site({"page.py": "x = 1\ny = = 2"}).http()
    assert failed.value.filename is not None
    assert failed.value.filename.endswith("page.py")
    assert failed.value.lineno == 2


def test_a_module_that_failed_to_load_is_loaded_again_at_the_next_request(new_site: NewSite) -> None:
    site = new_site(
        {
            "page.py": """
            import _state, krait_ws
            _state.tries += 1
            if _state.tries == 1:
                raise ConnectionError("the database is not there yet")
            def http(request):
                return krait_ws.Response(str(_state.tries))
            """,
            "_state.py": "tries = 0",
        }
    )
    with pytest.raises(ConnectionError):
        site.http()
    assert [site.text(), site.text()] == ["2", "2"]


def test_other_encodings_are_read_as_python_reads_them(new_site: NewSite) -> None:
    source = "# coding: latin-1\nimport krait_ws\nkrait_ws.response = krait_ws.Response('é')".encode("latin-1")
    assert new_site({"page.py": source}).text() == "é"


# ---- at the same moment


def test_many_requests_at_once_load_a_module_once(new_site: NewSite) -> None:
    site = new_site(
        {
            "page.py": """
            import threading
            import krait_ws
            import _counter

            _counter.loaded.append(1)
            threading.Event().wait(0.02)  # long enough for the others to come

            def http(request):
                return krait_ws.Response(str(len(_counter.loaded)))
            """,
            "_counter.py": "loaded = []",
        }
    )
    barrier = threading.Barrier(50)

    def request() -> str:
        barrier.wait(DEADLINE)
        return site.text()

    assert [task.result() for task in [Task(request) for _ in range(50)]] == ["1"] * 50


def test_slow_scripts_do_not_wait_for_each_other(new_site: NewSite) -> None:
    """All fifty are inside of the function at the same moment, in both forms."""
    script = """
        import krait_ws, _meeting
        _meeting.barrier.wait(10)
        krait_ws.response = krait_ws.Response(krait_ws.request.path)
        """
    function = """
        import krait_ws, _meeting
        def http(request):
            _meeting.barrier.wait(10)
            assert krait_ws.request is request
            return krait_ws.Response(request.path)
        """
    meeting = "import threading\nbarrier = threading.Barrier(50)"
    site = new_site({"script.py": script, "function.py": function, "_meeting.py": meeting})
    tasks = []
    for number in range(50):
        name = "script.py" if number % 2 else "function.py"
        tasks.append(Task(lambda name=name, number=number: site.http(name, f"/{number}").get_data(as_text=True)))
    assert [task.result() for task in tasks] == [f"/{number}" for number in range(50)]


# ---- shared code and reloading


def rewrite(file: Path, source: str) -> None:
    """A new text of another length, so that no clock decides whether it is seen."""
    assert len(source) != file.stat().st_size
    file.write_text(source)


PAGE = "import krait_ws\nkrait_ws.response = krait_ws.Response({value!r})"
FUNCTION = "import krait_ws\ndef http(request): return krait_ws.Response({value!r})"


@pytest.mark.parametrize("source", [PAGE, FUNCTION], ids=["script", "function"])
def test_a_changed_script_is_loaded_anew_only_where_reloading_is_on(new_site: NewSite, source: str) -> None:
    for reloads, second in ((False, "old"), (True, "brand new")):
        site = new_site({"page.py": source.format(value="old")}, reloads=reloads)
        assert site.text() == "old"
        rewrite(site.root / "page.py", source.format(value="brand new"))
        assert site.text() == second
        site.scripts.close()


def test_without_a_change_nothing_is_loaded_anew(new_site: NewSite) -> None:
    site = new_site({"page.py": FUNCTIONS}, reloads=True)
    assert [site.text() for _ in range(3)] == ["1 /page", "2 /page", "3 /page"]


@pytest.mark.parametrize("package", [True, False], ids=["package", "namespace package"])
@pytest.mark.parametrize(
    "statement",
    [
        "from _lib.words import word",
        "import _lib.words; word = _lib.words.word",
        "from _lib import words; word = words.word",
    ],
    ids=["from module", "import module", "from package"],
)
def test_a_changed_private_module_is_loaded_anew(new_site: NewSite, statement: str, package: bool) -> None:
    """Failed for ``from _lib import words`` without an ``__init__.py``: such a package has no file and was kept."""
    files = {"page.py": f"import krait_ws\n{statement}\nkrait_ws.response = krait_ws.Response(word)"}
    files["_lib/words.py"] = "word = 'old'"
    if package:
        files["_lib/__init__.py"] = ""
    site = new_site(files, reloads=True)
    assert site.text() == "old"
    rewrite(site.root / "_lib/words.py", "word = 'brand new'")
    assert site.text() == "brand new"


def test_a_new_private_module_is_found(new_site: NewSite) -> None:
    site = new_site(
        {"page.py": "import _late, krait_ws\nkrait_ws.response = krait_ws.Response(_late.word)"}, reloads=True
    )
    with pytest.raises(ModuleNotFoundError):
        site.http()
    (site.root / "_late.py").write_text("word = 'here'")
    assert site.text() == "here"


def test_a_broken_script_that_is_mended_runs(new_site: NewSite) -> None:
    site = new_site({"page.py": "def ("}, reloads=True)
    with pytest.raises(SyntaxError):
        site.http()
    rewrite(site.root / "page.py", PAGE.format(value="mended"))
    assert site.text() == "mended"


def test_script_and_module_stay_the_same_class_after_a_change_of_one_of_them(new_site: NewSite) -> None:
    """All of the site is loaded anew together: an instance must be one of the class that its user sees."""
    site = new_site(
        {
            "page.py": """
                import krait_ws, _a, _b
                krait_ws.response = krait_ws.Response(str(isinstance(_b.thing, _a.Thing)))
                """,
            "_a.py": "class Thing: pass",
            "_b.py": "import _a\nthing = _a.Thing()",
        },
        reloads=True,
    )
    assert site.text() == "True"
    rewrite(site.root / "_a.py", "class Thing:\n    changed = True")
    assert site.text() == "True"


@pytest.mark.parametrize("reloads", [False, True])
@pytest.mark.parametrize("package", [True, False], ids=["package", "namespace package"])
def test_close_takes_everything_of_the_site_out_of_the_interpreter(
    new_site: NewSite, reloads: bool, package: bool
) -> None:
    """Failed for a folder without ``__init__.py``: it stayed, and shadowed the same name in another site."""
    path, writes = list(sys.path), sys.dont_write_bytecode
    files = {
        "page.py": FUNCTIONS + "    from _shelf import book\n    import _single\n    from ._beside import page\n",
        "_shelf/book.py": "",
        "_single.py": "",
        "_beside.py": "page = 1",
    }
    if package:
        files["_shelf/__init__.py"] = ""
    site = new_site(files, reloads=reloads)
    assert site.text() == "1 /page"
    assert "_shelf.book" in sys.modules
    site.scripts.close()
    assert [name for name, module in sys.modules.items() if lies_in(module, [site])] == []
    assert sys.path == path
    assert sys.dont_write_bytecode is writes


def test_an_answer_is_a_response_of_werkzeug(new_site: NewSite) -> None:
    assert isinstance(new_site({"page.py": PAGE.format(value="x")}).http(), WerkzeugResponse)


# ---- a folder that is a site of its own, or a part of one

COUNT = """
    total = 0


    def count():
        global total
        total += 1
        return str(total)
    """

COUNTER_FUNCTION = """
    import krait_ws
    from {dots}_count import count


    def http(request):
        return krait_ws.Response(count())
    """

COUNTER_SCRIPT = """
    import krait_ws
    from {dots}_count import count

    krait_ws.response = krait_ws.Response(count())
    """


@pytest.mark.parametrize("source", [COUNTER_FUNCTION, COUNTER_SCRIPT], ids=["function form", "script form"])
@pytest.mark.parametrize("inside", ["", "shop/", "shop/[name]/", "a.b/"])
def test_what_stands_beside_a_script_is_imported_relatively(new_site: NewSite, source: str, inside: str) -> None:
    site = new_site(
        {
            f"{inside}_count.py": COUNT,
            f"{inside}one.py": source.format(dots="."),
            f"{inside}socket.io/two.py": source.format(dots=".."),
        }
    )
    assert [site.text(f"{inside}{name}.py") for name in ("one", "socket.io/two", "one")] == ["1", "2", "3"]


def test_two_sites_have_a_private_module_of_the_same_name(new_site: NewSite, tmp_path: Path) -> None:
    files = {"_count.py": COUNT, "page.py": COUNTER_FUNCTION.format(dots=".")}
    first = new_site(files)
    other = tmp_path / "other"
    shutil.copytree(first.root, other)
    second = Site(other)
    try:
        assert [first.text(), first.text(), second.text()] == ["1", "2", "1"]
    finally:
        second.scripts.close()


def test_a_relative_import_leaves_no_site(new_site: NewSite) -> None:
    site = new_site({"page.py": "from .._count import count\n"})
    (site.root.parent / "_count.py").write_text("raise AssertionError('it was imported')")
    with pytest.raises(ImportError, match="beyond top-level package"):
        site.http()


def test_a_module_that_is_imported_relatively_is_loaded_anew(new_site: NewSite) -> None:
    site = new_site({"a/_value.py": "value = 'old'\n", "a/page.py": VALUE_OF_NEIGHBOUR}, reloads=True)
    assert site.text("a/page.py") == "old"
    (site.root / "a/_value.py").write_text("value = 'newer'\n")
    assert site.text("a/page.py") == "newer"


VALUE_OF_NEIGHBOUR = """
    import krait_ws
    from ._value import value


    def http(request):
        return krait_ws.Response(value)
    """
