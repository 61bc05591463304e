"""Imports go one way. A module may import what stands in a line above its own in ``LAYERS``, or in its own line.

``TYPE_CHECKING`` imports do not count: they are not there when the program runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import krait_ws

PACKAGE = Path(krait_ws.__file__).parent

# Lowest first. A name stands for a module or for a whole package.
LAYERS = [
    ["errors", "version"],
    ["config", "logs"],
    ["protocol"],
    ["core"],
    ["waiting", "patching", "tuning"],
    ["mailbox", "handlers", "log_output"],
    ["streams", "overrides", "pings", "roles"],
    ["session"],
    ["rate"],
    ["controller"],
    ["broadcast"],
    ["http"],
    ["context"],
    ["", "websockets"],  # the façades; "" is krait_ws itself
    ["auth", "hooks"],
    ["groups", "routing", "scripts", "pages"],
    ["site"],
    ["observe"],
    ["network"],
    ["client"],
    ["bench", "settings"],
    ["testing", "flags"],
    ["serving", "gunicorn"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}

FORBIDDEN_IN_PROTOCOL = {
    "socket",
    "select",
    "ssl",
    "threading",
    "_thread",
    "gevent",
    "greenlet",
    "logging",
    "asyncio",
    "time",
}


def modules() -> list[str]:
    """Every module of the package, without the package's own name: ``protocol.frames``."""
    names = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def source_of(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split(".")) if name else PACKAGE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, but for the bodies of ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from runtime_nodes(other)
            continue
        yield child
        yield from runtime_nodes(child)


def imports(source: str, known: list[str]) -> set[str]:
    """What a module imports: modules of krait_ws without that name, others whole."""
    found = set()
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                is_module = whole.removeprefix("krait_ws.") in known and base.split(".")[0] == "krait_ws"
                found.add(whole if is_module else base)
    return found


def inside(names: set[str]) -> set[str]:
    """Those of krait_ws."""
    return {name.removeprefix("krait_ws").removeprefix(".") for name in names if name.split(".")[0] == "krait_ws"}


def level_of(name: str) -> int:
    """The line of a module in LAYERS."""
    top = name.split(".")[0]
    assert top in LEVELS, f"krait_ws.{name} has no layer: give it a line in LAYERS of {Path(__file__).name}"
    return LEVELS[top]


@pytest.mark.parametrize("name", modules(), ids=lambda name: name or "krait_ws")
def test_imports_go_down(name: str) -> None:
    known = modules()
    upward = {
        other for other in inside(imports(source_of(name).read_text(), known)) if level_of(other) > level_of(name)
    }
    assert not upward, f"krait_ws.{name} imports upward: {', '.join(sorted(upward))}"


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] == "protocol"])
def test_the_protocol_knows_no_socket_no_thread_no_gevent_and_no_log(name: str) -> None:
    found = {other.split(".")[0] for other in imports(source_of(name).read_text(), modules())}
    assert not found & FORBIDDEN_IN_PROTOCOL


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] == "client"])
def test_the_clients_need_nothing_of_the_server(name: str) -> None:
    others = {other for other in inside(imports(source_of(name).read_text(), modules())) if not is_client(other)}
    assert others <= {"errors", "version"}


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] not in ("client", "commands")])
def test_the_server_needs_no_client(name: str) -> None:
    assert not [other for other in inside(imports(source_of(name).read_text(), modules())) if is_client(other)]


@pytest.mark.parametrize("name", ["commands.serve", "commands.routes", "commands.config", "flags", "cli"])
def test_the_commands_that_serve_need_no_client(name: str) -> None:
    assert not [other for other in inside(imports(source_of(name).read_text(), modules())) if is_client(other)]


def is_client(name: str) -> bool:
    return name.split(".")[0] == "client"


def test_errors_import_nothing() -> None:
    assert imports(source_of("errors").read_text(), modules()) == {"__future__"}


@pytest.mark.parametrize(
    "name", ["mailbox", "config", "protocol.connection", "routing", "scripts", "pages", "http", "context"]
)
def test_only_what_waits_or_runs_knows_gevent(name: str) -> None:
    found = {other.split(".")[0] for other in imports(source_of(name).read_text(), modules())}
    assert not found & {"gevent", "greenlet", "socket"}


def test_no_layer_is_named_that_is_not_there() -> None:
    assert set(LEVELS) <= {name.split(".")[0] for name in modules()}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from krait_ws import context, __version__", {"krait_ws.context", "krait_ws"}),
        ("from krait_ws.protocol import frames", {"krait_ws.protocol.frames"}),
        ("from krait_ws.protocol.frames import TEXT", {"krait_ws.protocol.frames"}),
        ("import krait_ws.session as s, os.path", {"krait_ws.session", "os.path"}),
        ("def f():\n    from krait_ws.cli import main", {"krait_ws.cli"}),
        ("if TYPE_CHECKING:\n    from krait_ws.cli import main\nelse:\n    import os", {"os"}),
        ("try:\n    import a\nexcept ImportError:\n    import b", {"a", "b"}),
    ],
)
def test_the_reader_of_imports_reads_them(source: str, expected: set[str]) -> None:
    assert imports(source, modules()) == expected
