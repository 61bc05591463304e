"""The schedule of new attempts, and what is not tried again."""

from __future__ import annotations

import pytest

from krait_ws.client import AuthError, Backoff, ClientError, ConnectionClosedError, ConnectionUnavailableError

REFUSED = ConnectionUnavailableError("refused")


def test_the_usual_schedule_ends_with_a_minute() -> None:
    assert [Backoff().delay(failures, REFUSED) for failures in range(8)] == [1, 2, 5, 10, 30, 60, 60, 60]


def test_exponential_delays_have_full_jitter() -> None:
    backoff = Backoff.exponential(0.5, 8)
    assert backoff.delays == (0.5, 1, 2, 4, 8)
    drawn = [backoff.delay(3, REFUSED) for _ in range(1000)]
    assert all(delay is not None and 0 <= delay <= 4 for delay in drawn)
    assert min(drawn) < 0.4 and max(drawn) > 3.6  # type: ignore[operator, type-var]  # noqa: PT018
    assert len(set(drawn)) > 900


def test_attempts_are_limited() -> None:
    backoff = Backoff((1,), attempts=2)
    assert [backoff.delay(failures, REFUSED) for failures in range(3)] == [1, 1, None]
    assert Backoff(attempts=0).delay(0, REFUSED) is None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (REFUSED, True),
        (ConnectionUnavailableError("503", status=503), True),
        (ConnectionClosedError(1000), True),
        (ConnectionClosedError(1001, "restart"), True),
        (ConnectionClosedError(1006), True),
        (ConnectionClosedError(1008, "no"), False),
        (ConnectionClosedError(3999), True),
        (ConnectionClosedError(4000), False),
        (ConnectionClosedError(4999), False),
        (AuthError("who are you?", status=401), False),
        (AuthError("not you", status=403), False),
    ],
)
def test_the_usual_rule(error: ClientError, again: bool) -> None:
    assert (Backoff().delay(0, error) is not None) is again


def test_a_rule_of_the_user_decides_by_the_close_code() -> None:
    backoff = Backoff(retry=lambda error: isinstance(error, ConnectionClosedError) and error.code == 4001)
    assert backoff.delay(0, ConnectionClosedError(4001)) == 1
    assert backoff.delay(0, ConnectionClosedError(4002)) is None
    assert backoff.delay(0, REFUSED) is None


def test_a_server_may_ask_for_a_longer_rest_but_not_for_a_shorter_or_endless_one() -> None:
    def asked(seconds: float) -> float | None:
        return Backoff((5,)).delay(0, ConnectionUnavailableError("503", status=503, retry_after=seconds))

    assert (asked(20), asked(1), asked(1e9)) == (20, 5, 300)


@pytest.mark.parametrize(
    "options",
    [{"delays": ()}, {"delays": (1, -1)}, {"delays": (float("nan"),)}, {"attempts": -1}, {"stable_after": -1}],
)
def test_what_cannot_be_a_schedule_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Backoff(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [(0, 60), (2, 1), (1, float("inf"))])
def test_what_cannot_double_is_refused(given: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="first must be"):
        Backoff.exponential(*given)
