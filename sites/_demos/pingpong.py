"""PING and PONG in both directions on one connection."""

import re
import time

from krait_ws.websockets import WebsocketsCtrlBase

LINE = re.compile(r"(PING|PONG) ([0-9]{1,9})")


class PingPong(WebsocketsCtrlBase):
    """Answers each PING of the page with a PONG, and sends a PING of its own each second."""

    interval = 1.0  # seconds between two PINGs of our own

    def on_thread_start(self) -> None:
        """Waits for the page's next line, but not beyond the time of our next PING."""
        count = 0
        next_ping = time.monotonic()
        while not self.should_stop():
            wait = next_ping - time.monotonic()
            if wait > 0:
                message = self.pop_in_message(timeout=wait)
                if message is not None:
                    self.answer(message)
            else:
                count += 1
                self.push_out_message(f"PING {count}")
                next_ping = time.monotonic() + self.interval

    def answer(self, message: str | bytes) -> None:
        """Answers a PING, takes note of a PONG, and closes on anything else."""
        line = LINE.fullmatch(message) if isinstance(message, str) else None
        if line is None:
            self.close(1008, "expected PING <n> or PONG <n>")
        elif line[1] == "PING":
            self.push_out_message(f"PONG {line[2]}")
