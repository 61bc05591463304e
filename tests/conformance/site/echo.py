"""The testee: /echo?runs_on=thread, greenlet or loop sends every message back as it came."""

from krait_ws import Response
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsRequest, WebsocketsResponse


class HandlerEcho(WebsocketsCtrlBase):
    """Pops and pushes in a handler of its own."""

    max_message_size = 32 << 20  # the suite's largest message has 16 MiB
    compress = True

    def on_thread_start(self) -> None:
        for message in self.messages():
            self.push_out_message(message)


class ThreadEcho(HandlerEcho):
    runs_on = "thread"


class GreenletEcho(HandlerEcho):
    runs_on = "greenlet"


class LoopEcho(WebsocketsCtrlBase):
    """Pushes while the network loop delivers."""

    runs_on = "loop"
    max_message_size = HandlerEcho.max_message_size
    compress = HandlerEcho.compress

    def __init__(self) -> None:
        super().__init__(use_in_message_queue=False)

    def on_in_message(self, message: str | bytes) -> None:
        self.push_out_message(message)


CONTROLLERS = {controller.runs_on: controller for controller in (ThreadEcho, GreenletEcho, LoopEcho)}


def websocket(request: WebsocketsRequest) -> WebsocketsResponse | Response:
    controller = CONTROLLERS.get(request.query.get("runs_on", "thread"))
    if controller is None:
        return Response("runs_on is thread, greenlet or loop\n", status=404)
    return WebsocketsResponse(controller())
