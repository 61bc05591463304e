"""Slow, blocking work, which on an event loop would stall every other connection."""

import time

from krait_ws.websockets import WebsocketsCtrlBase


def slow_library(job: str | bytes) -> None:
    """Stands for any call that blocks: a database driver, an HTTP client, a subprocess."""
    time.sleep(2)


class SlowWork(WebsocketsCtrlBase):
    """Takes each message as a job, does one after another and answers each with `DONE <seconds>`."""

    def on_thread_start(self) -> None:
        """Blocks its own thread and nobody else's."""
        for job in self.messages():
            if self.should_stop():  # nobody waits for the jobs that are left
                return
            started = time.monotonic()
            slow_library(job)
            seconds = time.monotonic() - started
            self.push_out_message(f"DONE {seconds:.2f}")
