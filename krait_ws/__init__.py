"""WebSocket back ends in plain blocking code.

``request`` and ``response`` are the HTTP request and answer of the current route script. They are per request, so read
and assign them on the module (``krait_ws.response = ...``), never with ``from krait_ws import response``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from krait_ws.version import __version__

if TYPE_CHECKING:
    from werkzeug.wrappers import Response as WerkzeugResponse

    from krait_ws.http import Request, Response, ResponseBadRequest, ResponseNotFound, ResponseRedirect

    request: Request | None
    response: WerkzeugResponse | None

__all__ = ["Request", "Response", "ResponseBadRequest", "ResponseNotFound", "ResponseRedirect", "__version__"]


class _Krait(ModuleType):
    """A module whose ``request`` and ``response`` are those of the current context.

    What they need is imported at their first use: gevent and werkzeug take 100 ms, and most commands need neither.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module("krait_ws.http"), name)
        self.__dict__[name] = value
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})

    @property
    def request(self) -> Request | None:
        from krait_ws import context

        return context.current_request()

    @request.setter
    def request(self, request: Request | None) -> None:
        from krait_ws import context
        from krait_ws.http import Request

        if request is not None and not isinstance(request, Request):
            raise TypeError(f"krait_ws.request must be a krait_ws.Request or None, not {request!r}")
        context.http_request.set(request)

    @property
    def response(self) -> WerkzeugResponse | None:
        from krait_ws import context

        return context.http_response.get()

    @response.setter
    def response(self, response: WerkzeugResponse | None) -> None:
        from werkzeug.wrappers import Response as WerkzeugResponse

        from krait_ws import context

        if response is not None and not isinstance(response, WerkzeugResponse):
            raise TypeError(f"krait_ws.response must be a krait_ws.Response or None, not {response!r}")
        context.http_response.set(response)


sys.modules[__name__].__class__ = _Krait
