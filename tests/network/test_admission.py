"""Limits without a server: rates of addresses, what counts as one address, and places that are given back."""

from __future__ import annotations

import logging
import random
import threading

import pytest

from krait_ws.config import Config
from krait_ws.http import Response
from krait_ws.network import admission as module
from krait_ws.network.admission import AddressRates, Admission, Place, address_key
from krait_ws.rate import Rate

ONE, TWO = b"\x7f\x00\x00\x01", b"\x7f\x00\x00\x02"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "192.0.2.1:4711", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:0db8:0:0:ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "[2001:db8::7]:443", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("unknown", "unknown", True),
        ("unknown", "hidden", False),
        ("", "192.0.2.1", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (address_key(one) == address_key(other)) == same


def test_what_a_client_without_an_address_and_one_with_a_long_name_are() -> None:
    assert address_key("") == b""
    assert len(address_key("x" * 10_000)) == 64
    assert address_key("\ud800")


def test_as_many_at_once_as_a_second_allows() -> None:
    rate = AddressRates(Rate(5, 1.0))
    assert [rate.take(ONE, 100.0) for _ in range(5)] == [0.0] * 5
    assert rate.take(ONE, 100.0) == pytest.approx(0.2)
    assert rate.take(ONE, 100.1) == pytest.approx(0.1)
    assert rate.take(TWO, 100.1) == 0.0
    assert rate.take(ONE, 100.2) == 0.0
    assert rate.take(ONE, 100.2) == pytest.approx(0.2)


def test_less_than_one_a_second() -> None:
    rate = AddressRates(Rate(0.1, 1.0))
    assert rate.take(ONE, 0.0) == 0.0
    assert rate.take(ONE, 4.0) == pytest.approx(6.0)
    assert rate.take(ONE, 10.0) == 0.0


@pytest.mark.parametrize("per_second", [0.3, 1, 7, 100])
def test_a_flood_gets_exactly_its_rate(per_second: float) -> None:
    rate = AddressRates(Rate(per_second, 1.0))
    chance = random.Random(4711)
    now, passed = 50.0, 0
    end = now + 100 / per_second
    while now < end:
        passed += rate.take(ONE, now) == 0.0
        now += chance.expovariate(per_second * 500)
    assert passed == pytest.approx(100 + max(1.0, per_second), abs=1.5)


def test_an_address_that_keeps_within_the_rate_is_never_refused() -> None:
    rate = AddressRates(Rate(3, 1.0))
    assert not any(rate.take(ONE, 1e6 + number / 3) for number in range(1000))


def test_the_table_of_addresses_forgets_those_whose_bucket_is_full() -> None:
    rate = AddressRates(Rate(10, 1.0))
    for number in range(1000):
        rate.take(number.to_bytes(4, "big"), 0.0)
    assert len(rate) == 1000
    for number in range(1000, 2001):
        rate.take(number.to_bytes(4, "big"), 2.0)
    assert len(rate) <= 1002


def test_the_table_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ADDRESSES", 100)
    rate = AddressRates(Rate(1, 1.0))
    for number in range(5000):
        assert rate.take(number.to_bytes(4, "big"), 7.0) == 0.0
        assert len(rate) <= 100
    assert rate.take((4999).to_bytes(4, "big"), 7.0) > 0, "those that came last are remembered"


def new_admission(**settings: float) -> tuple[Admission, list[str]]:
    """One whose refusals are noted in a list."""
    refused: list[str] = []
    return Admission(Config(**settings), refused.append), refused  # type: ignore[arg-type]


def entered(admission: Admission, address: str) -> Place:
    place = admission.enter(address)
    assert isinstance(place, Place)
    return place


def status_of(answer: Response | Place | None) -> tuple[int, str]:
    assert isinstance(answer, Response)
    return answer.status_code, answer.headers["Retry-After"]


def test_places() -> None:
    admission, refused = new_admission(max_connections=3, max_connections_per_address=2)
    one, two = entered(admission, "192.0.2.1"), entered(admission, "::ffff:192.0.2.1")
    assert status_of(admission.enter("192.0.2.1")) == (429, "1")
    three = entered(admission, "192.0.2.2")
    assert status_of(admission.enter("192.0.2.3")) == (503, "1")
    for place in (one, one, two, three):
        place.leave()
    assert (admission.connections, admission._connections_of) == (0, {})
    entered(admission, "192.0.2.1").leave()
    assert refused == ["max_connections_per_address", "max_connections"]


def test_clients_without_an_address_are_not_counted_together() -> None:
    admission, _ = new_admission(max_connections_per_address=1, max_handshakes_per_address=1)
    for _ in range(10):
        assert admission.check_handshake("") is None
        entered(admission, "")


def test_threads() -> None:
    admission, _ = new_admission(max_threads=3)
    one, two, three = (entered(admission, "") for _ in range(3))
    assert one.reserve_threads(2)
    assert not two.reserve_threads(2)
    assert two.reserve_threads(1)
    assert three.reserve_threads(0)
    one.leave()
    one.leave()
    assert admission.threads == 1
    one.reserve_threads(2)  # by a script that was late: its session gives them back
    one.leave()
    for place in (two, three):
        place.leave()
    assert (admission.threads, admission.connections) == (0, 0)


def test_threads_are_counted_right_when_they_are_reserved_at_the_same_moment() -> None:
    admission, _ = new_admission(max_threads=50)
    most = 0

    def churn() -> None:
        nonlocal most
        for _ in range(2000):
            if admission.reserve_threads(7):
                most = max(most, admission.threads)
                admission.release_threads(7)

    threads = [threading.Thread(target=churn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admission.threads == 0
    assert 7 <= most <= 50


def test_a_flood_of_refusals_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    admission, refused = new_admission(max_connections=1, max_handshakes_per_address=1)
    entered(admission, "192.0.2.1")
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            admission.enter("192.0.2.1")
            admission.check_handshake("192.0.2.1")
        now += 61
        admission.enter("192.0.2.1")
    assert [record.getMessage() for record in caplog.records] == [
        "upgrades are refused: max_connections is reached",
        "upgrades are refused: max_handshakes_per_address is reached",
        "upgrades are refused: max_connections is reached",
    ]
    assert (refused.count("max_connections"), refused.count("max_handshakes_per_address")) == (1001, 999)
