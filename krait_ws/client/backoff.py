"""When to try again after a connection failed or was lost, and when to give up.

Comes in: how often in a row it failed, and why. Goes out: seconds to wait, or that it is over. It holds no state, so
one may serve any number of streams; who uses it counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

from krait_ws.client.errors import AuthError, ClientError, ConnectionClosedError, ConnectionUnavailableError

LONGEST_RETRY_AFTER = 300.0
"""Seconds; a server that asks for a longer rest is asked again after this time."""


def is_worth_a_retry(error: ClientError) -> bool:
    """The usual rule: all but refused credentials and what the application gave as its own reason to close.

    Close code 1008 and those from 4000 to 4999 (RFC 6455 section 7.4.2) are the application's. Only who knows it can
    say which of them pass; that is what a rule of your own is for.
    """
    if isinstance(error, ConnectionClosedError):
        return error.code != 1008 and not 4000 <= error.code <= 4999
    return not isinstance(error, AuthError)


@dataclass(frozen=True)
class Backoff:
    """The schedule of new attempts. Immutable. Thread: any.

    Args:
        delays: Seconds before the first, the second, … attempt; the last one repeats.
        jitter: Full jitter: a random part of each delay, so that clients of a restarted server do not come all at once.
        attempts: New attempts in a row before it is given up; 0 for none at all, ``None`` for no limit.
        stable_after: Seconds that a connection must have been open before the schedule starts anew. A server that
            accepts and then closes is therefore asked more and more seldom.
        retry: Decides by the error whether to try again at all: ``retry(error) -> bool``. It is asked about every
            failure, a ``ConnectionClosedError`` with its ``code`` as well as a refused attempt. It must not block.

    Raises:
        ValueError: There are no delays, or one of them is negative or no number.
    """

    delays: Sequence[float] = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
    _: KW_ONLY
    jitter: bool = False
    attempts: int | None = None
    stable_after: float = 30.0
    retry: Callable[[ClientError], bool] = is_worth_a_retry

    def __post_init__(self) -> None:
        object.__setattr__(self, "delays", tuple(self.delays))
        if not self.delays or not all(0 <= delay < float("inf") for delay in self.delays):
            raise ValueError(f"delays must be one or more numbers of seconds, not {self.delays!r}")
        if self.attempts is not None and self.attempts < 0:
            raise ValueError(f"attempts must be 0 or more, or None, not {self.attempts!r}")
        if not self.stable_after >= 0:
            raise ValueError(f"stable_after must be 0 or more seconds, not {self.stable_after!r}")

    @classmethod
    def exponential(
        cls,
        first: float = 1.0,
        most: float = 60.0,
        *,
        attempts: int | None = None,
        stable_after: float = 30.0,
        retry: Callable[[ClientError], bool] = is_worth_a_retry,
    ) -> Backoff:
        """Delays that double from ``first`` to ``most`` seconds, with full jitter.

        Raises:
            ValueError: ``first`` is not more than 0, or more than ``most``.
        """
        if not 0 < first <= most < float("inf"):
            raise ValueError(f"first must be more than 0 and at most {most:g} seconds, not {first!r}")
        delays = [first]
        while delays[-1] < most:
            delays.append(min(most, 2 * delays[-1]))
        return cls(delays, jitter=True, attempts=attempts, stable_after=stable_after, retry=retry)

    def delay(self, failures: int, error: ClientError) -> float | None:
        """Seconds until the next attempt; ``None`` gives up.

        Args:
            failures: New attempts since the last stable connection; 0 at its loss.
            error: Why it failed this time. A ``Retry-After`` of the server makes the delay longer, never shorter.
        """
        if (self.attempts is not None and failures >= self.attempts) or not self.retry(error):
            return None
        delay = self.delays[min(failures, len(self.delays) - 1)]
        if self.jitter:
            delay = random.uniform(0, delay)
        asked = error.retry_after if isinstance(error, ConnectionUnavailableError) else None
        return max(delay, min(asked or 0.0, LONGEST_RETRY_AFTER))
