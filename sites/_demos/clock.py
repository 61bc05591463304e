"""A controller that only speaks."""

import time
from datetime import datetime

from krait_ws.websockets import WebsocketsCtrlBase


class Clock(WebsocketsCtrlBase):
    """Pushes the time each second, as ISO 8601 text with the server's UTC offset."""

    def __init__(self) -> None:
        super().__init__(use_in_message_queue=False)

    def on_thread_start(self) -> None:
        """Sleeps until each full second with wait_stop, which wakes at once when the page goes away."""
        while not self.should_stop():
            now = datetime.now().astimezone().isoformat(timespec="milliseconds")
            self.push_out_message(now)
            self.wait_stop(1.0 - time.time() % 1.0)

    def on_in_message(self, message: str | bytes) -> None:
        """Ignores what the page sends: there is no in-queue that it could fill."""
