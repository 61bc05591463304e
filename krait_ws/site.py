"""A site: answers plain requests and upgrades with its pages and route scripts.

Comes in: a request. Goes out: a ``Response``, or a ``WebsocketsResponse`` whose subprotocol has been checked. What a
script raises becomes a 500 and a log record.

Thread: any, but never the network loop: route scripts may block and files are read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from werkzeug.exceptions import HTTPException

from krait_ws import context, pages
from krait_ws.auth import CLOSE_CODE, ClosingResponse, Unauthorized
from krait_ws.config import Config
from krait_ws.context import WebsocketsRequest, WebsocketsResponse
from krait_ws.errors import RouteScriptError
from krait_ws.http import Request, Response
from krait_ws.logs import log_failure, redacted_target
from krait_ws.protocol.handshake import is_upgrade
from krait_ws.routing import Match, Router
from krait_ws.scripts import Answer, Scripts
from krait_ws.waiting import monotonic

logger = logging.getLogger("krait_ws.site")

_MOMENT = 0.02  # seconds
_MOST_FOUND = 256


class _Found(NamedTuple):
    match: Match
    route: str
    """The URL pattern of a route script; empty for another file."""
    at: float


class Site:
    """The folder ``root`` as a site.

    Raises:
        SiteError: See ``Router``.
    """

    def __init__(self, root: Path, config: Config) -> None:
        self.router = Router(root)
        self.scripts = Scripts(self.router.root, reloads=config.debug)
        self._debug = config.debug
        self._found: dict[str, _Found] = {}  # route scripts, by path

    def close(self) -> None:
        """Takes the site's modules out of the interpreter."""
        self.scripts.close()

    def answer(self, request: Request) -> Answer | None:
        """The answer to a request, ``None`` when the site has no file for it; only an upgrade is answered with a
        ``WebsocketsResponse``. Never raises.

        To be called in a context of its own (``contextvars``): the script's ``request`` and ``response`` live there.
        """
        try:
            return self._answer(request)
        except Unauthorized as error:
            if error.close and context.websockets_request.get() is not None:
                return ClosingResponse(CLOSE_CODE, error.reason)
            return pages.http_exception(error, request)
        except HTTPException as error:
            return pages.http_exception(error, request)
        except BaseException as error:  # SystemExit and its like are a script's own affair: this is a worker
            return self.failed(error, request)

    def failed(self, error: BaseException, request: Request) -> Response:
        """The 500 for what a route script, or a controller's constructor or ``on_start``, raised; logs it."""
        path = redacted_target(request.path)
        log_failure(logger, error, request.environ, "%s %s: the route script failed", request.method, path)
        return pages.script_error(error, debug=self._debug)

    def _answer(self, request: Request) -> Answer | None:
        path = _path_of(request)
        found = None if path is None else self._find(path)
        if path is None or found is None:
            return None
        match = found.match
        wants_upgrade = is_upgrade(request.environ)
        if match.is_folder_index and not wants_upgrade:
            return pages.folder_redirect(request, path)
        if found.route:
            return self._run_script(request, found, wants_upgrade)
        if wants_upgrade:
            return Response("This URL takes no WebSocket.\n", status=400)
        return pages.static_file(match.file, request)

    def _find(self, path: str) -> _Found | None:
        """What answers a path. A route script is remembered for a moment: its code is in memory, and looking for it
        anew costs more than many a script."""
        now = monotonic()
        found = self._found.get(path)
        if found is not None and now - found.at < _MOMENT:
            return found
        match = self.router.match(path)
        if match is None:
            return None
        if not match.is_script:
            return _Found(match, "", now)
        found = _Found(match, self.router.pattern(match.file), now)
        if not self._debug:
            if len(self._found) >= _MOST_FOUND:
                self._found.clear()
            self._found[path] = found
        return found

    def _run_script(self, request: Request, found: _Found, wants_upgrade: bool) -> Answer:
        match = found.match
        request.params = dict(match.params)  # a script may change its own
        upgrade = WebsocketsRequest(request, request.params, found.route) if wants_upgrade else None
        answer = self.scripts.get(match.file).run(request, upgrade)
        if isinstance(answer, WebsocketsResponse) and upgrade is not None:
            offered = upgrade.protocols or []
            if answer.protocol is not None and answer.protocol not in offered:
                raise RouteScriptError(
                    f"{match.file}: the script chose the subprotocol {answer.protocol!r}, "
                    f"but the client offered {offered}"
                )
        return answer


def _path_of(request: Request) -> str | None:
    """The decoded path, taken from the environ: werkzeug's ``path`` makes one slash of several at its start."""
    try:
        return str(request.environ.get("PATH_INFO", "")).encode("latin-1").decode()
    except UnicodeError:
        return None
