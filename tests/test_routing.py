"""From paths to files: pages, folders, ``[name]`` segments and their order, and everything that must not be found."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from krait_ws.errors import SiteError
from krait_ws.routing import Match, Router
from tests.helpers import Task

SiteFolder = Callable[[Mapping[str, str | bytes]], Path]

FILES = [
    "index.html",
    "about.html",
    "style.css",
    "favicon.svg",
    "both.py",
    "both.html",
    "page-or-file.html",
    "page-or-file",
    "café.html",
    "with space.html",
    "two.dots.html",
    "no-ending",
    "chat/index.py",
    "chat/lobby.py",
    "chat/[room].py",
    "chat/help/index.html",
    "users/index.html",
    "users/[user]/index.py",
    "users/[user]/posts/[post].py",
    "users/[user]/avatar.png",
    "users/admin/settings.py",
    "empty/deep/file.txt",
    "mixed/[a].py",
    "mixed/[a]/index.py",
    "mixed/[a]/more.py",
    "_private/secret.html",
    "_private/secret.py",
    "_secret.html",
    ".hidden/secret.html",
    ".hidden.html",
    ".env",
    "chat/_shared.py",
    "chat/.git/config",
    "__init__.py",
    "[slug]/page.html",
]


@pytest.fixture
def root(site_folder: SiteFolder) -> Path:
    """A site with every kind of file."""
    return site_folder({name: f"content of {name}" for name in FILES})


def found(root: Path, path: str) -> tuple[str, dict[str, str]] | None:
    """The file, relative to the site, and the parameters."""
    match = Router(root).match(path)
    return None if match is None else (str(match.file.relative_to(root.resolve())), match.params)


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("/", "index.html"),
        ("/index", "index.html"),
        ("/index.html", "index.html"),
        ("/about", "about.html"),
        ("/about.html", "about.html"),
        ("/style.css", "style.css"),
        ("/favicon.svg", "favicon.svg"),
        ("/both", "both.py"),
        ("/both.html", "both.html"),
        ("/page-or-file", "page-or-file.html"),
        ("/no-ending", "no-ending"),
        ("/café", "café.html"),
        ("/with space", "with space.html"),
        ("/two.dots", "two.dots.html"),
        ("/chat/", "chat/index.py"),
        ("/chat/help/", "chat/help/index.html"),
        ("/empty/deep/file.txt", "empty/deep/file.txt"),
    ],
)
def test_plain_files(root: Path, path: str, file: str) -> None:
    assert found(root, path) == (file, {})


@pytest.mark.parametrize(
    ("path", "file", "params"),
    [
        ("/chat/lobby", "chat/lobby.py", {}),
        ("/chat/kitchen", "chat/[room].py", {"room": "kitchen"}),
        ("/chat/lobby.txt", "chat/[room].py", {"room": "lobby.txt"}),
        ("/chat/café bar", "chat/[room].py", {"room": "café bar"}),
        ("/users/ann/", "users/[user]/index.py", {"user": "ann"}),
        ("/users/ann/avatar.png", "users/[user]/avatar.png", {"user": "ann"}),
        ("/users/ann/posts/7", "users/[user]/posts/[post].py", {"user": "ann", "post": "7"}),
        ("/users/admin/settings", "users/admin/settings.py", {}),
        ("/users/admin/avatar.png", "users/[user]/avatar.png", {"user": "admin"}),
        ("/users/admin/posts/7", "users/[user]/posts/[post].py", {"user": "admin", "post": "7"}),
        ("/users/admin/", "users/[user]/index.py", {"user": "admin"}),
        ("/mixed/x", "mixed/[a].py", {"a": "x"}),
        ("/mixed/x/", "mixed/[a]/index.py", {"a": "x"}),
        ("/mixed/x/more", "mixed/[a]/more.py", {"a": "x"}),
        ("/anything/page", "[slug]/page.html", {"slug": "anything"}),
        ("/chat/page", "chat/[room].py", {"room": "page"}),
        ("/empty/page", "[slug]/page.html", {"slug": "empty"}),
    ],
)
def test_parameters_come_last_and_a_dead_end_is_left_again(
    root: Path, path: str, file: str, params: dict[str, str]
) -> None:
    assert found(root, path) == (file, params)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/chat/[room]", ("chat/[room].py", {"room": "[room]"}), id="last segment"),
        pytest.param("/users/[user]/", ("users/[user]/index.py", {"user": "[user]"}), id="folder"),
        pytest.param("/users/[user]/avatar.png", ("users/[user]/avatar.png", {"user": "[user]"}), id="inside"),
    ],
)
def test_the_pattern_itself_in_a_url_is_a_value_like_any_other(
    root: Path, path: str, expected: tuple[str, dict[str, str]]
) -> None:
    """Failed: the file was found under its own name, without parameters, and its script died of a KeyError."""
    assert found(root, path) == expected


@pytest.mark.parametrize("path", ["/chat/[room].py", "/users/[user]/posts/[post].py", "/mixed/[a].py"])
def test_the_file_name_of_a_pattern_never_leads_to_its_source(root: Path, path: str) -> None:
    match = Router(root).match(path)
    assert match is None or match.is_script


def test_a_page_may_have_a_parameter_and_code_wins_over_it(site_folder: SiteFolder) -> None:
    root = site_folder({"a/[x].html": "", "b/[x].html": "", "b/[x].py": ""})
    assert found(root, "/a/1") == ("a/[x].html", {"x": "1"})
    assert found(root, "/b/1") == ("b/[x].py", {"x": "1"})


@pytest.mark.parametrize(
    ("path", "is_folder_index"),
    [
        ("/chat", True),
        ("/chat/", False),
        ("/chat/index", False),
        ("/chat/help", True),
        ("/users", True),
        ("/users/ann", True),
        ("/about", False),
        ("/", False),
    ],
)
def test_a_folder_without_its_slash_is_told_apart(root: Path, path: str, is_folder_index: bool) -> None:
    match = Router(root).match(path)
    assert match is not None
    assert match.is_folder_index is is_folder_index


@pytest.mark.parametrize(
    "path",
    [
        "",
        "about",
        "/nothing",
        "/about/",
        "/about/more",
        "/empty",
        "/empty/",
        "/empty/deep",
        "/style",
        "/style.css/",
        "/users/ann/posts/",
        "/users/ann/posts",
        "/INDEX.HTML",
        "//",
        "//about",
        "/chat//lobby",
        "/chat/lobby//",
        "//evil.example.com/about",
    ],
)
def test_what_is_not_there(root: Path, path: str) -> None:
    assert found(root, path) is None


# What stands here is the decoded path, as the server gives it: "%2e%2e" is "..", "%5c" a backslash.
ATTACKS = [
    "/..",
    "/../outside.txt",
    "/chat/../../outside.txt",
    "/chat/../index.html",
    "/./index.html",
    "/chat/./lobby",
    "/.../index.html",
    "/..\\outside.txt",
    "\\..\\outside.txt",
    "/chat\\..\\..\\outside.txt",
    "/chat\\lobby",
    "/%2e%2e/outside.txt",
    "/..%2foutside.txt",
    "/index.html\0",
    "/index.html\0.png",
    "/\0",
    "/about\n",
    "/about\r\nX: y",
    "/about\x7f",
    "/about\x1b",
    "/C:/outside.txt",
    "/about.html::$DATA",
    "/_private/secret",
    "/_private/secret.html",
    "/_private/",
    "/_private",
    "/_secret",
    "/_secret.html",
    "/.hidden/secret",
    "/.hidden",
    "/.hidden.html",
    "/.env",
    "/chat/_shared",
    "/chat/_shared.py",
    "/chat/.git/config",
    "/__init__",
    "/__init__.py",
    "/both.py",
    "/both.PY",
    "/chat/lobby.py",
    "/chat/index.py",
    "/chat/_x",
    "/chat/.x",
    "/users/../chat/",
    "/users/_/",
    "/" + "a/" * 5000,
    "/" + "a" * 5000,
    "/" + "../" * 50 + "etc/passwd",
    "/etc/passwd",
    "/proc/self/environ",
    "/~root",
    "/\udcff",
]


@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: ascii(path)[:40])
def test_attacks_find_nothing(root: Path, path: str) -> None:
    (root.parent / "outside.txt").write_text("secret")
    assert found(root, path) is None


def test_source_is_never_a_file_to_send_whatever_the_case_of_its_ending(site_folder: SiteFolder) -> None:
    root = site_folder({"upper.PY": "secret", "mixed.Py": "secret", "old.py.bak": "text"})
    for path in ("/upper", "/upper.PY", "/mixed", "/mixed.Py", "/mixed.py"):
        match = Router(root).match(path)
        assert match is None or match.is_script


@pytest.mark.parametrize(
    ("link", "target", "path"),
    [
        pytest.param("out.txt", "../outside.txt", "/out.txt", id="file outside"),
        pytest.param("out.html", "../outside.txt", "/out", id="page outside"),
        pytest.param("out.py", "../outside.py", "/out", id="script outside"),
        pytest.param("out", "..", "/out/outside.txt", id="folder outside"),
        pytest.param("out", "../site-other", "/out/page.html", id="folder whose name begins alike"),
        pytest.param("etc", "/etc", "/etc/passwd", id="absolute"),
        pytest.param("[any].py", "../outside.py", "/x", id="parameter file outside"),
        pytest.param("[any]", "..", "/x/outside.txt", id="parameter folder outside"),
        pytest.param("shown.html", "_private/secret.html", "/shown", id="private file"),
        pytest.param("shown", "_private", "/shown/secret", id="private folder"),
        pytest.param("shown.txt", ".env", "/shown.txt", id="hidden file"),
        pytest.param("source.txt", "chat.py", "/source.txt", id="source under another ending"),
        pytest.param("loop.html", "loop.html", "/loop", id="itself"),
        pytest.param("broken.html", "nothing", "/broken", id="nothing"),
    ],
)
def test_links_lead_neither_out_nor_to_what_is_private(
    site_folder: SiteFolder, link: str, target: str, path: str
) -> None:
    root = site_folder({"chat.py": "source", "_private/secret.html": "secret", ".env": "secret"})
    (root.parent / "outside.txt").write_text("secret")
    (root.parent / "outside.py").write_text("secret")
    other = root.parent / "site-other"
    other.mkdir()
    (other / "page.html").write_text("secret")
    os.symlink(target, root / link)
    assert Router(root).match(path) is None


def test_a_link_inside_of_the_site_is_followed(site_folder: SiteFolder) -> None:
    root = site_folder({"pages/about.html": "about"})
    os.symlink("pages", root / "docs")
    os.symlink("pages/about.html", root / "over.html")
    assert found(root, "/docs/about") == ("pages/about.html", {})
    assert found(root, "/over") == ("pages/about.html", {})


def test_the_site_itself_may_be_a_link(site_folder: SiteFolder, tmp_path: Path) -> None:
    root = site_folder({"about.html": "about"})
    os.symlink(root, tmp_path / "link")
    match = Router(tmp_path / "link").match("/about")
    assert match is not None
    assert match.file == root / "about.html"


@pytest.mark.parametrize("name", ["pipe.html", "pipe.py", "pipe", "[any].py"])
def test_a_pipe_is_no_page(site_folder: SiteFolder, name: str) -> None:
    """Opening one blocks until somebody writes to it."""
    root = site_folder({"about.html": "about"})
    os.mkfifo(root / name)
    assert Task(lambda: found(root, "/pipe")).result() is None


def test_a_socket_is_no_page(site_folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = site_folder({"about.html": "about"})
    monkeypatch.chdir(root)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.html")
        assert found(root, "/socket") is None


def test_a_folder_is_no_page_though_its_name_ends_like_one(site_folder: SiteFolder) -> None:
    root = site_folder({"odd.html/x.txt": "x", "odd.py/y.txt": "y"})
    assert found(root, "/odd") is None
    assert found(root, "/odd.html/x.txt") == ("odd.html/x.txt", {})


def test_a_file_that_appears_is_found_at_once(root: Path) -> None:
    router = Router(root)
    assert router.match("/new") is None
    (root / "new.html").write_text("new")
    assert router.match("/new") is not None


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(["[a].py", "[b].py"], id="files"),
        pytest.param(["[a]/x.html", "[b]/y.html"], id="folders"),
        pytest.param(["deep/er/[a].py", "deep/er/[b].py"], id="below"),
        pytest.param(["[x]/[a].py", "[x]/[b].py"], id="below a parameter"),
        pytest.param(["[a].py", "[b].html"], id="code and page"),
    ],
)
def test_two_parameters_for_the_same_urls_are_an_error_that_names_them(
    site_folder: SiteFolder, files: list[str]
) -> None:
    root = site_folder(dict.fromkeys(files, ""))
    with pytest.raises(SiteError, match="claim the same URLs") as refused:
        Router(root)
    assert "[a]" in str(refused.value)
    assert "[b]" in str(refused.value)


@pytest.mark.parametrize("files", [["[a].py", "[b]/x.py"], ["[a].py", "[a].html"], ["_p/[a].py", "_p/[b].py"]])
def test_what_is_not_ambiguous(site_folder: SiteFolder, files: list[str]) -> None:
    Router(site_folder(dict.fromkeys(files, "")))


@pytest.mark.parametrize("name", ["missing", "file.txt"])
def test_a_site_that_is_no_folder_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(SiteError, match=name):
        Router(tmp_path / name)


def test_a_match_knows_a_script() -> None:
    assert Match(Path("chat.py")).is_script
    assert not Match(Path("chat.html")).is_script


# ---- the table


def test_the_table_of_routes(site_folder: SiteFolder) -> None:
    root = site_folder(
        {
            "index.html": "",
            "about.html": "",
            "style.css": "",
            "chat/index.py": "",
            "chat/[room].py": "",
            "users/[user]/posts.py": "",
            "_private/x.py": "",
            ".hidden": "",
        }
    )
    assert [(route.url, str(route.file.relative_to(root))) for route in Router(root).routes()] == [
        ("/", "index.html"),
        ("/about", "about.html"),
        ("/chat/", "chat/index.py"),
        ("/chat/[room]", "chat/[room].py"),
        ("/style.css", "style.css"),
        ("/users/[user]/posts", "users/[user]/posts.py"),
    ]


@pytest.mark.parametrize(
    "links",
    [{"up": "."}, {"docs/up": ".."}, {"docs/self": ".", "link": "docs"}],
    ids=["root", "parent", "through a link"],
)
def test_the_table_of_a_site_with_links_in_a_circle_is_short(site_folder: SiteFolder, links: dict[str, str]) -> None:
    """Failed: a circle that is entered through a link was walked until the system refused, with an OSError."""
    root = site_folder({"docs/page.html": ""})
    for link, target in links.items():
        os.symlink(target, root / link)
    urls = [route.url for route in Router(root).routes()]
    assert "/docs/page" in urls
    assert len(urls) < 5
