"""Compiles, caches, reloads and runs route scripts.

Comes in: a matched file and a request. Goes out: a ``Response`` or a ``WebsocketsResponse``. A file that defines
``websocket(request)`` or ``http(request)`` at its top level has the function form: it is loaded once, as a module, and
its functions are called per request. Every other file has the script form: it runs top to bottom for each request.

Thread: any, but never the network loop: scripts may block.
"""

from __future__ import annotations

import contextvars
import importlib
import logging
import os
import re
import sys
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws import context
from krait_ws.context import WebsocketsRequest, WebsocketsResponse
from krait_ws.errors import RouteScriptError
from krait_ws.hooks import compile_script
from krait_ws.http import Request, Response, ResponseBadRequest

Answer: TypeAlias = WerkzeugResponse | WebsocketsResponse

logger = logging.getLogger("krait_ws.scripts")


def upgrade_required() -> Response:
    """The answer to a plain request for a URL that speaks WebSocket only (RFC 9110 section 15.5.22)."""
    return Response(
        "This URL speaks WebSocket: connect to it with ws:// or wss://.\n",
        status=426,
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )


class Script:
    """A compiled route script.

    Args:
        file: Its code.
        module_name: Name of the module that it becomes.
        package: Where its relative imports start; without one they fail.

    Raises:
        SyntaxError: The file is no Python, with its name and line.
    """

    def __init__(self, file: Path, module_name: str, package: str = "") -> None:
        self._code, self.hooks = compile_script(file)
        self.file = file
        self._module_name = module_name
        self._package = package
        self._module: ModuleType | None = None  # guarded by _load_lock
        self._load_lock = threading.Lock()  # where scripts run in greenlets, this is gevent's

    @property
    def form(self) -> str:
        """``"script"`` or ``"function"``."""
        return "function" if self.hooks else "script"

    def run(self, request: Request, upgrade: WebsocketsRequest | None) -> Answer:
        """The script's answer. To be called in a context of its own.

        Raises:
            Exception: Whatever the script raised.
            RouteScriptError: It answered with something that is no answer.
        """
        context.http_request.set(request)
        context.http_response.set(None)
        context.websockets_request.set(upgrade)
        context.websockets_response.set(None)
        answer = self._call(request, upgrade) if self.hooks else self._execute(upgrade)
        if isinstance(answer, WebsocketsResponse) and upgrade is None:
            return upgrade_required()
        return answer

    def _execute(self, upgrade: WebsocketsRequest | None) -> Answer:
        # dataclasses and typing look a class's module up by its name, so there must be one.
        sys.modules.setdefault(self._module_name, self._new_module())
        names: dict[str, object] = {
            "__name__": self._module_name,
            "__package__": self._package,
            "__file__": str(self.file),
        }
        exec(self._code, names)
        answer = context.websockets_response.get() or context.http_response.get()
        if answer is not None:
            return answer
        if isinstance(names.get("response"), WebsocketsResponse | WerkzeugResponse):
            raise RouteScriptError(
                f"{self.file} assigned a name of its own, response: assign websockets.response or krait_ws.response"
            )
        logger.info("%s assigned no response and defines no websocket(request) or http(request)", self.file)
        return upgrade_required() if upgrade is None else ResponseBadRequest("The route script refused the upgrade.\n")

    def _call(self, request: Request, upgrade: WebsocketsRequest | None) -> Answer:
        module = self._loaded()
        if upgrade is None:
            if "http" not in self.hooks:
                return upgrade_required()
            answer = module.http(request)
            if isinstance(answer, WerkzeugResponse):
                return answer
            raise RouteScriptError(f"{self.file}: http(request) must return a krait_ws.Response, not {answer!r}")
        if "websocket" not in self.hooks:
            return ResponseBadRequest("This URL takes no WebSocket.\n")
        answer = module.websocket(upgrade)
        if answer is None:
            return ResponseBadRequest("The route script refused the upgrade.\n")
        if isinstance(answer, WebsocketsResponse | WerkzeugResponse):
            return answer
        raise RouteScriptError(
            f"{self.file}: websocket(request) must return a WebsocketsResponse, a krait_ws.Response or None, "
            f"not {answer!r}"
        )

    def _new_module(self) -> ModuleType:
        module = ModuleType(self._module_name)
        module.__file__ = str(self.file)
        module.__package__ = self._package
        return module

    def _loaded(self) -> ModuleType:
        # The lock is held while the file's top level runs, as Python's own import lock is: two requests at the same
        # moment must get the same module state.
        with self._load_lock:
            if self._module is None:
                module = self._new_module()
                sys.modules[self._module_name] = module  # dataclasses, pickle and typing look a module up by its name
                try:
                    # A context of its own: nothing of this request may stay in the module.
                    contextvars.Context().run(exec, self._code, module.__dict__)
                except BaseException:
                    sys.modules.pop(self._module_name, None)
                    raise
                self._module = module
            return self._module


class Scripts:
    """The route scripts of a site, compiled once each; with ``reloads``, again when they or their modules changed.

    While this is open scripts share code in private modules: the site's folder is importable, and so is, relatively,
    what stands beside a script.
    """

    def __init__(self, root: Path, *, reloads: bool) -> None:
        self._root = root
        self._reloads = reloads
        self._lock = threading.Lock()
        self._scripts: dict[Path, Script] = {}  # guarded by _lock
        self._snapshot = self._take_snapshot()  # guarded by _lock
        self._wrote_bytecode = not sys.dont_write_bytecode
        self._closed = False  # guarded by _lock
        sys.path.append(str(root))  # last: a page json.py must not become everybody's json
        if reloads:
            # Bytecode is trusted by the second and the size of its source: too coarse for somebody who edits and tries.
            sys.dont_write_bytecode = True

    def get(self, file: Path) -> Script:
        """The script of a file, compiled.

        Raises:
            SyntaxError: The file is no Python.
            OSError: It cannot be read.
        """
        with self._lock:
            if self._reloads and (snapshot := self._take_snapshot()) != self._snapshot:
                self._snapshot = snapshot
                self._forget_locked()
            script = self._scripts.get(file)
            if script is None:
                script = self._scripts[file] = Script(file, self._module_name(file), self._package(file.parent))
            return script

    def close(self) -> None:
        """Ends what the site has put into the interpreter: its import path and its modules. Later calls do nothing,
        because the site may be open anew by then."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._forget_locked()
        if str(self._root) in sys.path:
            sys.path.remove(str(self._root))
        if self._reloads and self._wrote_bytecode:
            sys.dont_write_bytecode = False

    def _module_name(self, file: Path) -> str:
        """A name that no import statement can mean, and no two files share."""
        inside = file.relative_to(self._root).as_posix()
        return f"krait_route_{zlib.crc32(inside.encode()):08x}_{re.sub(r'[^0-9A-Za-z_]', '_', inside[:-3])}"

    def _package(self, folder: Path) -> str:
        """The package of a folder of the site. What a script imports relatively is found wherever the folder stands: in
        this site, or as a site of its own."""
        name = f"krait_site_{zlib.crc32(str(self._root).encode()):08x}"
        _make_package(name, self._root)
        path = self._root
        for part in folder.relative_to(self._root).parts:
            path /= part
            name += "." + part.replace(".", "/")  # a dot would begin another package; no folder has a slash in its name
            _make_package(name, path)
        return name

    def _take_snapshot(self) -> dict[str, tuple[int, int]]:
        """Time and size of every Python file of the site; empty when nothing is ever reloaded."""
        snapshot: dict[str, tuple[int, int]] = {}
        for folder, folders, files in os.walk(self._root) if self._reloads else ():
            folders[:] = [name for name in folders if not name.startswith((".", "__"))]
            for name in files:
                if name.endswith(".py"):
                    with suppress(OSError):  # deleted meanwhile: then it differs from the last snapshot
                        status = os.stat(path := os.path.join(folder, name))
                        snapshot[path] = (status.st_mtime_ns, status.st_size)
        return snapshot

    def _forget_locked(self) -> None:
        """Everything of the site is loaded anew at its next use: a module may hold what another one gave it."""
        for name, module in list(sys.modules.items()):
            places: tuple[object, ...] = ()
            with suppress(Exception):  # it may look at folders, and be anybody's code
                # A package without an __init__.py has no file, only a path.
                places = (getattr(module, "__file__", None), *(getattr(module, "__path__", None) or ()))
            if any(isinstance(place, str) and Path(place).is_relative_to(self._root) for place in places):
                sys.modules.pop(name, None)
        importlib.invalidate_caches()
        self._scripts.clear()


def _make_package(name: str, folder: Path) -> None:
    """Makes a folder a package under this name, unless it is one."""
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
