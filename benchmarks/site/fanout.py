"""Every message of any client goes to all of them."""

from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse, broadcast

members = set()


class Member(WebsocketsCtrlBase):
    runs_on = "loop"

    def __init__(self):
        super().__init__(use_in_message_queue=False)

    def on_start(self):
        super().on_start()
        members.add(self)

    def on_stop(self):
        members.discard(self)
        super().on_stop()

    def on_in_message(self, message):
        broadcast(list(members), message)


def websocket(request):
    return WebsocketsResponse(Member())
