"""Controllers that block all the time, each in a ``time.sleep`` of its own thread."""

import time

from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse


class Blocking(WebsocketsCtrlBase):
    runs_on = "thread"

    def on_thread_start(self):
        while not self.should_stop():
            time.sleep(0.5)


def websocket(request):
    return WebsocketsResponse(Blocking())
