"""Groups: replay then live, one order for all, bounds, members that end, and threads that do it all at once."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from krait_ws.config import Config
from krait_ws.errors import GroupFullError
from krait_ws.groups import Group
from krait_ws.websockets import WebsocketsCtrlBase
from tests.helpers import DEADLINE, HandLoop, Task, own_thread, until, upgrade_request


class Member(WebsocketsCtrlBase):
    """Neither handler nor connection: what it gets stays in its out-mailbox."""

    max_out_messages = 1_000_000
    slow_consumer = "close"

    def all(self) -> list[Any]:
        """What it got so far."""
        return list(iter(self.pop_out_message, None))


class Small(Member):
    max_out_messages = 2


@pytest.fixture
def group() -> Group:
    return Group()


def started(controller: WebsocketsCtrlBase, **options: Any) -> Any:
    """A controller with its settings in force, without a connection."""
    session = controller._krait
    session.accept(HandLoop(), Config(**options), upgrade_request("/"), None, lambda _: None)
    return controller


# ---- replay then live


def test_a_newcomer_gets_the_last_message_of_every_key_then_what_is_live(group: Group) -> None:
    group.publish("lamp on", key="lamp")
    group.publish("heard by nobody")
    group.publish(b"\x01", key=5)
    group.publish("lamp off", key="lamp")
    member = Member()
    assert group.join(member)
    group.publish("live")
    assert member.all() == ["lamp off", b"\x01", "live"]


def test_what_is_forgotten_is_not_replayed(group: Group) -> None:
    group.publish("a", key="a")
    group.publish("b", key="b")
    assert group.forget("a")
    assert not group.forget("a")
    member = Member()
    group.join(member)
    assert member.all() == ["b"]
    assert group.last() == {"b": "b"}


def test_whoever_said_it_does_not_hear_it(group: Group) -> None:
    one, two = Member(), Member()
    group.join(one)
    group.join(two)
    group.publish("from one", key="one", but=one)
    assert (one.all(), two.all()) == ([], ["from one"])
    assert group.last() == {"one": "from one"}


def test_a_second_join_replays_nothing(group: Group) -> None:
    group.publish("a", key="a")
    member = Member()
    assert group.join(member)
    assert not group.join(member)
    group.publish("b")
    assert member.all() == ["a", "b"]
    assert group.members() == [member]


def test_who_has_left_hears_nothing_and_may_come_back(group: Group) -> None:
    group.publish("a", key="a")
    member = Member()
    group.join(member)
    assert group.leave(member)
    assert not group.leave(member)
    group.publish("b", key="a")
    assert member.all() == ["a"]
    assert group.join(member)
    assert member.all() == ["b"]


def test_members_are_told_apart_by_identity_whatever_they_say_is_equal(group: Group) -> None:
    class Equal(Member):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    one, two = Equal(), Equal()
    assert group.join(one)
    assert group.join(two)
    group.publish("x", but=one)
    assert (one.all(), two.all()) == ([], ["x"])


def test_a_buffer_is_copied(group: Group) -> None:
    buffer = bytearray(b"before")
    group.publish(memoryview(buffer), key="a")
    buffer[:] = b"after!"
    member = Member()
    group.join(member)
    assert member.all() == [b"before"]


# ---- mistakes and bounds


@pytest.mark.parametrize(
    ("message", "error"), [(5, TypeError), (None, TypeError), (iter("ab"), TypeError), ("\ud800", UnicodeEncodeError)]
)
def test_what_cannot_be_sent_is_neither_sent_nor_kept(group: Group, message: Any, error: type[Exception]) -> None:
    member = Member()
    group.join(member)
    with pytest.raises(error):
        group.publish(message, key="a")
    assert member.all() == []
    assert group.last() == {}


def test_more_keys_than_allowed_are_refused_and_known_ones_are_not() -> None:
    group = Group(max_keys=2)
    member = Member()
    group.join(member)
    group.publish("a", key="a")
    group.publish("b", key="b")
    with pytest.raises(GroupFullError, match=r"2 keys.*'c'.*forget"):
        group.publish("c", key="c")
    group.publish("b2", key="b")
    group.publish("without a key")
    assert member.all() == ["a", "b", "b2", "without a key"]
    group.forget("a")
    group.publish("c", key="c")
    assert group.last() == {"b": "b2", "c": "c"}


def test_a_negative_number_of_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 is below 0"):
        Group(max_keys=-1)


# ---- members that end


def test_a_member_whose_connection_has_ended_is_one_no_more(group: Group) -> None:
    one, two = started(Member()), started(Member())
    group.join(one)
    group.join(two)
    one.close()
    assert group.members() == [two]
    group.publish("x")
    assert not group.leave(one)
    assert not group.join(one)
    assert two.all() == ["x"]


@pytest.mark.parametrize("keeps_publishing", [True, False])
def test_the_ended_do_not_pile_up(group: Group, keeps_publishing: bool) -> None:
    """Not even where nobody publishes: then a join looks for them now and then."""
    seen: list[weakref.ref[Any]] = []
    for _ in range(1000):
        member = started(Member())
        seen.append(weakref.ref(member))
        group.join(member)
        member.close()
        if keeps_publishing:
            group.publish("x")
    del member
    gc.collect()
    assert sum(ref() is not None for ref in seen) <= (1 if keeps_publishing else 65)
    assert group.members() == []


def test_a_member_that_is_full_is_closed_and_holds_up_nobody(group: Group) -> None:
    slow, quick = started(Small()), started(Member())
    group.join(slow)
    group.join(quick)
    Task(lambda: [group.publish(str(number)) for number in range(5)]).result()
    assert slow.close_code == 1013
    assert quick.all() == ["0", "1", "2", "3", "4"]
    assert group.members() == [quick]


def test_a_member_that_would_block_is_closed_without_a_wait(group: Group) -> None:
    slow = Small()
    slow.slow_consumer = "block"
    started(slow)
    group.join(slow)
    Task(lambda: [group.publish(str(number)) for number in range(5)]).result()
    assert slow.close_code == 1013


def test_a_replay_that_has_no_room_ends_the_newcomer_alone(group: Group) -> None:
    old = started(Member())
    group.join(old)
    for number in range(5):
        group.publish(str(number), key=number)
    small = started(Small())
    group.join(small)
    assert small.close_code == 1013
    assert group.members() == [old]


# ---- one order


def test_what_is_done_while_a_message_goes_out_comes_after_it(group: Group) -> None:
    """Sending can run other code of this thread, which may use the group: all members see one order all the same."""
    members = [Member(), Member(), Member()]
    newcomer = Member()

    def meanwhile() -> None:
        members[0]._krait.outgoing.on_output = lambda: None
        group.publish("second", key="state")
        group.join(newcomer)
        group.leave(members[2])

    for member in members:
        group.join(member)
    members[0]._krait.outgoing.on_output = meanwhile
    group.publish("first", key="state")
    assert [member.all() for member in members[:2]] == [["first", "second"]] * 2
    assert members[2].all() == ["first", "second"]  # it left when the second was on its way
    assert newcomer.all() == ["second"]


@own_thread
def test_a_greenlet_that_a_closing_wakes_may_use_the_group() -> None:
    """On the loop, ending a session runs its waiting handler at once, in the middle of the publish that ended it."""
    group = Group()

    class Leaver(Small):
        runs_on = "greenlet"

        def on_thread_start(self) -> None:
            group.join(self)
            while self.pop_in_message(None) is not None:
                pass
            group.leave(self)
            group.publish("gone", key="state")

    hub = gevent.get_hub()
    loop = HandLoop()
    loop.hub = hub
    leaver, other = Leaver(), Member()
    leaver._krait.accept(loop, Config(), upgrade_request("/"), None, lambda _: None)
    while len(group.members()) < 1:
        gevent.sleep(0)
    group.join(other)
    done = gevent.event.Event()

    def on_the_loop() -> None:
        for number in range(3):
            group.publish(str(number), key="state")
        done.set()

    hub.loop.run_callback(on_the_loop)
    assert done.wait(DEADLINE)
    with gevent.Timeout(DEADLINE):
        while "gone" not in group.last().values():
            gevent.sleep(0)
    assert other.all() == ["0", "1", "2", "gone"]
    assert leaver.close_code == 1013


# ---- many threads


def numbered(count: int) -> Iterator[str]:
    return (str(number) for number in range(count))


def test_replay_then_live_loses_and_doubles_nothing(group: Group) -> None:
    """Newcomers join while four threads count up, each at a key of its own. What a newcomer gets of a key is the last
    number at that moment and then every following one."""
    count, publishers = 300, 4
    start = threading.Barrier(publishers + 1)
    members: list[Member] = []

    def publish(key: int) -> None:
        start.wait(DEADLINE)
        for number in numbered(count):
            group.publish(f"{key} {number}", key=key)

    tasks = [Task(lambda key=key: publish(key)) for key in range(publishers)]  # type: ignore[misc]
    start.wait(DEADLINE)
    while any(task.is_running for task in tasks):
        if len(members) < 400:
            members.append(Member())
            group.join(members[-1])
    for task in tasks:
        task.result()
    orders = []
    for member in members:
        got = [tuple(map(int, text.split())) for text in member.all()]
        orders.append(got)
        for key in range(publishers):
            numbers = [number for of, number in got if of == key]
            if numbers:
                assert numbers == list(range(numbers[0], count))
    live = [order[publishers:] for order in orders if len(order) > publishers]
    longest = max(live, key=len, default=[])
    for order in live:
        assert order == longest[len(longest) - len(order) :], "the members do not agree on one order"


def test_joining_and_leaving_while_others_do(group: Group) -> None:
    """Nobody hears anything before it joins or after it left."""
    running = threading.Event()
    running.set()

    def publish() -> None:
        number = 0
        while running.is_set():
            group.publish(str(number), key="n")
            number += 1

    def come_and_go() -> None:
        for _ in range(100):
            member = Member()
            assert group.join(member)
            assert group.leave(member)
            numbers = [int(text) for text in member.all() if text != "other"]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
            group.publish("other", key=threading.get_ident())
            group.forget(threading.get_ident())
            assert member.all() == []

    publisher = Task(publish)
    until(lambda: group.last(), "the first message")
    tasks = [Task(come_and_go) for _ in range(4)]
    try:
        for task in tasks:
            task.result(30)
    finally:
        running.clear()
        publisher.result()
    assert group.members() == []
    assert list(group.last()) == ["n"]
