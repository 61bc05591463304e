"""Pushes as fast as it can, for clients that never read."""

from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

LINE = "x" * 1000


class Firehose(WebsocketsCtrlBase):
    runs_on = "thread"
    push_timeout = 120.0  # stays connected for the whole run

    def on_thread_start(self):
        while self.push_out_message(LINE):
            pass


def websocket(request):
    return WebsocketsResponse(Firehose())
