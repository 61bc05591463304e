"""The controllers of the routes here: an echo and a waiting handler for each ``runs_on``."""

from krait_ws.websockets import WebsocketsCtrlBase


class ThreadEcho(WebsocketsCtrlBase):
    runs_on = "thread"

    def on_thread_start(self):
        for message in self.messages():
            self.push_out_message(message)


class GreenletEcho(ThreadEcho):
    runs_on = "greenlet"


class LoopEcho(WebsocketsCtrlBase):
    runs_on = "loop"

    def __init__(self):
        super().__init__(use_in_message_queue=False)

    def on_in_message(self, message):
        self.push_out_message(message)


class ThreadIdle(WebsocketsCtrlBase):
    """Waits for a message that never comes."""

    runs_on = "thread"

    def on_thread_start(self):
        self.pop_in_message(None)


class GreenletIdle(ThreadIdle):
    runs_on = "greenlet"


class LoopIdle(WebsocketsCtrlBase):
    """The event model's way of waiting."""

    runs_on = "loop"

    def __init__(self):
        super().__init__(use_in_message_queue=False)

    def on_in_message(self, message):
        pass
