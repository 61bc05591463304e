"""The documentation tells the truth: its examples run, its tables are those of the code, its links lead somewhere.

A fenced block ``python file=sites/x.py`` is a file of the document's own project: all files of a document are written
to one folder, where its site is served, its tests are run and its route scripts are talked to. A ``python`` block
without ``file=`` is run as it stands. ``text output=<command>`` is what the command prints there.
"""

from __future__ import annotations

import ast
import hashlib
import html.parser
import importlib
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import krait_ws
import krait_ws.auth
import krait_ws.client
import krait_ws.errors
import krait_ws.groups
import krait_ws.testing
import krait_ws.websockets
from krait_ws.cli import main
from krait_ws.config import options
from krait_ws.testing import Refused, SiteServer

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
PAGES = sorted((ROOT / "sites").rglob("*.html"))
SECONDS = 60  # that a command of the documentation may take

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Block:
    """A fenced block: ```` ```language file=... ````."""

    language: str
    info: dict[str, str]
    text: str


@dataclass
class Document:
    """What a Markdown file consists of, as far as it can be tested."""

    path: Path
    blocks: list[Block] = field(default_factory=list)

    def __post_init__(self) -> None:
        for found in _FENCE.finditer(self.text):
            language, _, rest = found[1].partition(" ")
            info = {}
            if rest:
                key, _, value = rest.partition("=")
                info[key] = value
            self.blocks.append(Block(language, info, found[2]))

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """Everything outside fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def files(self) -> dict[str, str]:
        return {block.info["file"]: block.text for block in self.blocks if "file" in block.info}

    @property
    def scripts(self) -> list[str]:
        """URLs of the document's route scripts."""
        files = [Path(name) for name in self.files if name.startswith("sites/") and name.endswith(".py")]
        return [f"/{file.relative_to('sites').with_suffix('')}" for file in files if not file.name.startswith("_")]

    def write(self, folder: Path) -> Path:
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return folder


def document(name: str) -> Document:
    return Document(ROOT / name)


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KRAIT_", "PYTEST_"))}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
each_page = pytest.mark.parametrize("path", PAGES, ids=name_of)


# ---- examples


def talk_to_hello(site: SiteServer) -> None:
    with site.connect("/hello") as client:
        client.expect("Who is there?")
        client.send("Ada")
        client.expect("Hello, Ada!")
        client.send("Bob")
        client.expect("Hello, Bob!")


def talk_to_chat(site: SiteServer) -> None:
    with site.connect("/chat?name=Ada") as ada:
        ada.expect("Ada joined")  # before Bob connects: nothing says whose handler is the quicker one
        with site.connect("/chat?name=Bob") as bob:
            ada.expect("Bob joined")
            bob.expect("Bob joined")
            ada.send(b"no text")
            ada.send("hello, Bob")
            bob.expect("Ada: hello, Bob")
            ada.close()
            bob.expect("Ada left")


def talk_to_counter(site: SiteServer) -> None:
    with site.connect("/counter") as one, site.connect("/counter") as two:
        one.send("40")
        one.expect("40")
        two.send("2")
        two.expect("42")
        two.send("no number")
        two.expect_close(1011)
    assert site.get("/counter").text == "42\n"


def talk_to_price(site: SiteServer) -> None:
    with site.connect("/price", protocols=["price.v2", "price.v1"]) as client:
        assert client.protocol == "price.v1"
        client.expect("1.25")
        client.expect_close(1000)
    with pytest.raises(Refused) as refused:
        site.connect("/price")
    assert (refused.value.status, refused.value.body) == (403, b"This speaks price.v1 only.\n")
    assert site.get("/price").text == "Prices are sent over a WebSocket.\n"


def talk_to_digest(site: SiteServer) -> None:
    with site.connect("/digest") as client:
        for message in ("text", b"\x00" * 3_000_000):
            client.send(message)
            client.expect(hashlib.sha256(message.encode() if isinstance(message, str) else message).hexdigest())
            client.expect("".join(f"{number}\n" for number in range(1000)))


def talk_to_events(site: SiteServer) -> None:
    with site.connect("/events") as client:
        client.send("hello")
        client.expect("HELLO")
        client.send("bye")
        assert client.expect_close(1000) == "see you"


def talk_to_heartbeat(site: SiteServer) -> None:
    with site.connect("/heartbeat") as client:
        client.expect("beat 1")
        client.expect("beat 2")
        client.send("stop")
        assert re.fullmatch(r"after \d+", client.expect_close(1000))


def status_of_refusal(site: SiteServer, path: str, **options: Any) -> int:
    with pytest.raises(Refused) as refused:
        site.connect(path, **options)
    return refused.value.status


def talk_to_feed(site: SiteServer) -> None:
    assert status_of_refusal(site, "/feed") == 401
    assert status_of_refusal(site, "/feed", headers={"Authorization": "Bearer wrong"}) == 401
    with site.connect("/feed", headers={"Authorization": "Bearer f6b1c2"}) as client:
        client.expect("Welcome back, ada.")


def talk_to_account(site: SiteServer) -> None:
    own = "https://chat.example.com"
    assert site.get("/account").status == 401
    signed_in = site.get("/account", headers={"Authorization": "Basic YWRhOmY2YjFjMg=="})
    assert signed_in.text == "You are signed in.\n"
    cookie = {"Cookie": signed_in.headers["Set-Cookie"].partition(";")[0]}
    assert status_of_refusal(site, "/account", origin="https://evil.example", headers=cookie) == 403
    for headers in (None, {"Cookie": "session=ada"}):
        with site.connect("/account", origin=own, headers=headers) as client:
            assert client.expect_close(4401) == "Sign in first."
    with site.connect("/account", origin=own, headers=cookie) as client:
        client.expect("Welcome back, ada.")


def talk_to_lamps(site: SiteServer) -> None:
    with site.connect("/lamps") as one:
        one.send("kitchen on")
        one.expect("kitchen on")
        one.send("hall on")
        one.send("kitchen off")
        one.expect("hall on")
        one.expect("kitchen off")
        with site.connect("/lamps") as two:
            two.expect("kitchen off")
            two.expect("hall on")
            two.send("hall off")
            one.expect("hall off")


def talk_to_lobby(site: SiteServer) -> None:
    with site.connect("/lobby") as client:
        client.expect("Hello.")
        client.expect_close(1000)


def talk_to_vote(site: SiteServer) -> None:
    with site.connect("/vote") as client:
        for number in range(5):
            client.send(str(number))
            client.expect(f"counted: {number}")
        with suppress(ConnectionClosed):
            for _ in range(1000):  # more than a slow machine gives back meanwhile; it may end inside
                client.send("once more")
        client.expect_close(1008)


def talk_to_switches(site: SiteServer) -> None:
    with pytest.raises(Refused) as refused:
        site.connect("/switches")
    assert refused.value.status == 401
    headers = {"Authorization": "Bearer garden-of-stones"}
    with site.connect("/switches", headers=headers) as one:
        one.send('{"lamp": "hall", "on": true}')
        one.expect('{"lamp": "hall", "on": true}')
        with site.connect("/switches", headers=headers) as other:
            other.expect('{"lamp": "hall", "on": true}')


def talk_to_questions(site: SiteServer) -> None:
    with site.connect("/questions") as client:
        client.send("2")
        for answer in ("1", "2", "end"):
            client.expect(answer)


CONVERSATIONS: dict[str, Callable[[SiteServer], None]] = {
    "/account": talk_to_account,
    "/chat": talk_to_chat,
    "/counter": talk_to_counter,
    "/digest": talk_to_digest,
    "/events": talk_to_events,
    "/feed": talk_to_feed,
    "/heartbeat": talk_to_heartbeat,
    "/hello": talk_to_hello,
    "/lamps": talk_to_lamps,
    "/lobby": talk_to_lobby,
    "/price": talk_to_price,
    "/questions": talk_to_questions,
    "/switches": talk_to_switches,
    "/vote": talk_to_vote,
}
"""For each route script that a document shows: somebody who talks to it."""

SETTINGS: dict[str, dict[str, Any]] = {"/account": {"origin": "https://chat.example.com"}}
"""What its document says to set."""

SCRIPTS = [(path, url) for path in DOCUMENTS for url in Document(path).scripts]


def test_the_documents_have_examples() -> None:
    assert [url for _, url in SCRIPTS if url in ("/hello", "/chat")] == ["/hello", "/chat"]
    assert {url for _, url in SCRIPTS} == set(CONVERSATIONS)


@pytest.mark.parametrize(("path", "url"), SCRIPTS, ids=[f"{name_of(path)}{url}" for path, url in SCRIPTS])
def test_a_route_script_can_be_talked_to(
    path: Path, url: str, tmp_path: Path, krait_site: Callable[..., SiteServer], caplog: pytest.LogCaptureFixture
) -> None:
    CONVERSATIONS[url](krait_site(Document(path).write(tmp_path) / "sites", **SETTINGS.get(url, {})))
    assert not [record for record in caplog.records if record.name == "krait_ws.site" and record.exc_info]


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if any(name.startswith("tests/") for name in Document(path).files)], ids=name_of
)
def test_the_tests_of_a_document_pass(path: Path, tmp_path: Path) -> None:
    shown = Document(path)
    tests = sum(text.count("\ndef test_") for name, text in shown.files.items() if name.startswith("tests/"))
    ended = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], shown.write(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{tests} passed" in ended.stdout, ended.stdout


@each_document
def test_every_other_python_block_runs(path: Path, tmp_path: Path) -> None:
    for number, block in enumerate(Document(path).blocks):
        if block.language == "python" and "file" not in block.info:
            script = tmp_path / f"block{number}.py"
            script.write_text(block.text, encoding="utf-8")
            ended = run([sys.executable, "-W", "error", script.name], tmp_path)
            assert ended.returncode == 0, block.text + ended.stderr


@each_document
def test_what_a_command_is_said_to_print(path: Path, tmp_path: Path) -> None:
    shown = Document(path)
    shown.write(tmp_path)
    for block in shown.blocks:
        if command := block.info.get("output"):
            name, *arguments = shlex.split(command)
            assert name == "krait-ws"
            ended = run([sys.executable, "-m", "krait_ws", *arguments], tmp_path)
            assert (ended.returncode, ended.stdout) == (0, block.text), ended.stderr


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[str]:
    """``krait-ws serve`` in a process of its own; gives the server's address without a scheme."""
    with subprocess.Popen(
        [sys.executable, "-m", "krait_ws", "serve", "--debug", "--port", "0", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"on http://(\S+)", process.stdout.readline())
            assert found, "the server did not start"
            yield found[1]
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def test_the_chat_of_the_tutorial_is_served_by_the_command(tmp_path: Path) -> None:
    folder = document("docs/tutorial.md").write(tmp_path)
    with served(folder) as address, connect(f"ws://{address}/chat?name=Ada", proxy=None) as ada:
        assert ada.recv(10) == "Ada joined"  # before Bob connects: nothing says whose handler is the quicker one
        with connect(f"ws://{address}/chat?name=Bob", proxy=None) as bob:
            assert [ada.recv(10), bob.recv(10)] == ["Bob joined", "Bob joined"]
            bob.send("hello")
            assert [ada.recv(10), bob.recv(10)] == ["Bob: hello", "Bob: hello"]


def test_the_application_behind_the_site_is_served_by_the_command(tmp_path: Path) -> None:
    folder = document("docs/reference.md").write(tmp_path)
    with served(folder, "--app", "legacy:app") as address:
        with urllib.request.urlopen(f"http://{address}/no/file", timeout=10) as answer:
            assert answer.read() == b"from the application\n"
        with connect(f"ws://{address}/no/file", proxy=None) as client:
            client.send("hello")
            assert client.recv(10) == "hello"


def test_every_python_block_is_formatted_and_has_no_mistakes() -> None:
    for path in DOCUMENTS:
        for block in Document(path).blocks:
            if block.language == "python":
                ast.parse(block.text)
                assert max(map(len, block.text.splitlines())) <= 120
                assert not re.search(r"[ \t]$", block.text, re.MULTILINE)


def flags_of_commands() -> set[str]:
    """The flags of all commands, as the names of settings are written."""
    context = click.Context(main)
    commands = [main.get_command(context, name) for name in main.list_commands(context)]
    flags = {flag for command in commands if command for option in command.params for flag in option.opts}
    return {flag.removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")}


def test_shell_commands_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    settings = {option.name for option in options()}
    for path in DOCUMENTS:
        text = Document(path).text
        assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= set(targets)
        variables = {name.lower() for name in re.findall(r"\bKRAIT_([A-Z_]+)\b", text)}
        assert variables <= settings | {"config", "pure_python"}, path.name
        flags = {name.replace("-", "_") for name in re.findall(r"`(?:krait-ws [^`]*)?--(?:no-)?([a-z-]+)", text)}
        assert flags <= settings | flags_of_commands() | {"check", "version", "help"}, path.name


# ---- the reference and the code


def settings_module() -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("settings_table")
    finally:
        sys.path.remove(str(ROOT / "docs"))


def test_the_table_of_settings_is_that_of_the_code() -> None:
    text = document("docs/reference.md").text
    assert settings_module().with_table(text) == text, "run python docs/settings_table.py"
    for option in options():
        assert f"| `{option.name}` |" in text


def test_the_class_attributes_are_all_named() -> None:
    section = section_of(document("docs/reference.md").text, "Class attributes")
    named = set(re.findall(r"`([a-z_]+)`", section))
    assert {option.name for option in options() if option.metadata["per_controller"]} <= named


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def own_members(classes: list[type]) -> set[str]:
    return {name for owner in classes for name in public(vars(owner))}


def test_the_reference_names_the_whole_contract() -> None:
    text = document("docs/reference.md").text
    errors = {
        name
        for name, value in vars(krait_ws.errors).items()
        if inspect.isclass(value) and issubclass(value, krait_ws.errors.KraitError)
    }
    testing = {
        name
        for name, value in vars(krait_ws.testing).items()
        if getattr(value, "__module__", None) == "krait_ws.testing" and not name.startswith("_")
    }
    contract = (
        set(krait_ws.__all__)
        | set(krait_ws.websockets.__all__)
        | set(krait_ws.auth.__all__)
        | own_members([krait_ws.websockets.WebsocketsCtrlBase])
        | own_members([krait_ws.websockets.WebsocketsRequest]) - {"compact"}
        | own_members([krait_ws.groups.Group])
        | own_members([krait_ws.testing.Client, krait_ws.testing.SiteServer, krait_ws.testing.Driver]) - {"server"}
        | errors
        | testing
    )
    assert {"push_out_message", "Refused", "HandshakeError", "origin", "expect_close"} <= contract
    words = set(re.findall(r"\w+", text))
    assert contract - words == set()


def test_the_page_of_the_clients_names_what_they_have() -> None:
    text = document("docs/clients.md").text
    owners = [krait_ws.client.Connection, krait_ws.client.Pool, krait_ws.client.Transport, krait_ws.client.Link]
    options = {name for owner in owners for name in inspect.signature(owner).parameters} - {"websocket"}
    contract = set(krait_ws.client.__all__) | own_members(owners) | options
    assert {"drain_condition", "PoolStats", "warm_up", "open_timeout"} <= contract
    assert contract - set(re.findall(r"\w+", text)) == set()


def test_the_tree_of_the_clients_errors_is_that_of_the_code() -> None:
    (tree,) = (block.text for block in document("docs/clients.md").blocks if "── ClientError" in block.text)
    shown = set(re.findall(r"    [├└]── (\w+)", tree))
    errors = {name: error for name, error in vars(krait_ws.client).items() if inspect.isclass(error)}
    assert shown == {
        name
        for name, error in errors.items()
        if issubclass(error, krait_ws.client.ClientError) and name != "ClientError"
    }
    assert {name for name in shown if issubclass(errors[name], TimeoutError)} == set(
        re.findall(r"(\w+)[^\n]*; a TimeoutError too", tree)
    )


def test_the_error_tree_is_that_of_the_code() -> None:
    (tree,) = (block.text for block in document("docs/reference.md").blocks if "KraitError\n" in block.text)
    for line in tree.splitlines()[1:]:
        found = re.match(r"([│ ]*)[├└]── (\w+)", line)
        assert found, line
        parent = getattr(krait_ws.errors, found[2]).__base__.__name__
        assert parent == ("RequestError" if found[1] else "KraitError")


# ---- links and file names


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", Document(path).prose, re.MULTILINE)}


def section_of(text: str, heading: str) -> str:
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", Document(path).prose):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.is_file(), target
        assert linked.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(linked), target


@each_document
def test_named_files_exist(path: Path) -> None:
    shown = Document(path)
    for name in re.findall(r"`((?:krait_ws|sites|docs|tests|benchmarks)/[^`\s*]*)`", shown.prose):
        assert name in shown.files or (ROOT / name).exists() or name in FILES_THAT_READERS_MAKE, name


FILES_THAT_READERS_MAKE = {"sites/chat/[room].py"}


@pytest.mark.parametrize("name", ["docs/data-flow.md", "docs/threads.md"])
def test_named_modules_exist(name: str) -> None:
    modules = re.findall(r"(?<![\w/.])((?:\w+/)*\w+\.py)\b", document(name).text)
    assert len(modules) > 20
    # In the diagram a path may be broken over two lines.
    existing = {str(file.relative_to(ROOT / "krait_ws")) for file in (ROOT / "krait_ws").rglob("*.py")}
    assert set(modules) - existing - {Path(file).name for file in existing} == set()


def test_the_waits_of_the_test_tools_are_as_told() -> None:
    section = (ROOT / "docs/reference.md").read_text(encoding="utf-8").split("| `krait_site` |")[1].split("\n\n")[0]
    seconds = f"{krait_ws.testing.DEFAULT_TIMEOUT:g}"
    assert re.findall(r"timeout=([0-9.]+)", section) == [seconds] * 5
    assert f"the {seconds} seconds" in section
    assert f"a deadline of {seconds} seconds" in (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")


def test_the_order_of_imports_is_as_told() -> None:
    """The chain in docs/data-flow.md: each module imports only what stands left of it."""
    text = document("docs/data-flow.md").prose
    chain = re.search(r"^errors <.*?cli$", text, re.MULTILINE | re.DOTALL)
    assert chain
    rank = {name: number for number, name in enumerate(re.findall(r"\w+", chain[0]))}
    for file in (ROOT / "krait_ws").rglob("*.py"):
        own = file.relative_to(ROOT / "krait_ws").with_suffix("").parts[0]
        if own in rank:
            for module in imported_at_run_time(file):
                other = module.split(".")[1]
                if other in rank and other != own:
                    assert rank[other] < rank[own], f"{file.name} imports {module}"
    packages = {file.relative_to(ROOT / "krait_ws").with_suffix("").parts[0] for file in python_files()}
    assert packages - set(rank) <= {"__init__", "__main__", "version", "websockets", "testing", "client"}


def python_files() -> list[Path]:
    return [file for file in (ROOT / "krait_ws").rglob("*.py") if file.read_text(encoding="utf-8").strip()]


def imported_at_run_time(file: Path) -> Iterator[str]:
    """Names of krait_ws modules that a file imports, but for those that only type checkers see."""
    nodes: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "krait_ws":
                yield from (f"krait_ws.{alias.name}" for alias in node.names)
            elif node.module.startswith("krait_ws."):
                yield node.module
        nodes += ast.iter_child_nodes(node)


# ---- the demos show the code that they run on


class Excerpts(html.parser.HTMLParser):
    """The ``pre`` elements that have a ``data-source`` or ``data-example``: (attribute, file, text)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self._current: tuple[str, str] | None = None
        self._text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if tag == "pre" and name in ("data-source", "data-example") and value:
                self._current = (name, value)
                self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre" and self._current:
            self.found.append((*self._current, self._text))
            self._current = None


def test_no_script_of_the_demos_has_the_name_of_a_module_of_python() -> None:
    """Whoever runs Python in such a folder would find it in place of Python's own."""
    assert not {file.stem for file in (ROOT / "sites").rglob("*.py")} & set(sys.stdlib_module_names)


def test_the_demos_have_excerpts() -> None:
    found = [(page.parent.name, kind) for page in PAGES for kind, _, _ in Excerpts(page).found]
    assert found.count(("sites", "data-example")) == 1
    for page in PAGES:
        assert (page.parent.name, "data-source") in found


@each_page
def test_excerpts_are_the_code(path: Path) -> None:
    for kind, name, text in Excerpts(path).found:
        if kind == "data-source":
            assert is_excerpt(text, (ROOT / "sites" / name).read_text(encoding="utf-8")), f"{name}:\n{text}"


def is_excerpt(text: str, source: str) -> bool:
    """Whether ``text`` is some consecutive lines of ``source`` with their common indentation taken away."""
    lines = source.splitlines()
    size = len(text.splitlines())
    return bool(text.strip()) and any(
        textwrap.dedent("\n".join(lines[start : start + size])) == text.rstrip("\n")
        for start in range(len(lines) - size + 1)
    )


def test_an_excerpt_is_verbatim() -> None:
    source = "def f():\n    a = 1\n    b = 2\n"
    assert is_excerpt("a = 1\nb = 2", source)
    assert is_excerpt("def f():\n    a = 1", source)
    assert not is_excerpt("a = 1\nb = 3", source)
    assert not is_excerpt("a = 1\n\nb = 2", source)
    assert not is_excerpt("b = 2\na = 1", source)
    assert not is_excerpt("", source)


def test_the_example_of_the_first_page_runs(tmp_path: Path, krait_site: Callable[..., SiteServer]) -> None:
    ((_, name, text),) = (found for found in Excerpts(ROOT / "sites/index.html").found if found[0] == "data-example")
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(text + "\n", encoding="utf-8")
    with krait_site(tmp_path).connect("/" + name.removesuffix(".py")) as client:
        client.send("hello")
        client.expect("hello")
        client.send(b"\x00\xff")
        client.expect(b"\x00\xff")
