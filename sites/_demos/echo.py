"""The smallest useful controller."""

from krait_ws.websockets import WebsocketsCtrlBase


class Echo(WebsocketsCtrlBase):
    """Sends every message back as it came: text as text, binary as binary."""

    def on_thread_start(self) -> None:
        """Loops until the connection ends, then returns."""
        for message in self.messages():
            self.push_out_message(message)
