"""A process's ends: everything that was sent is taken, in order, and no wait sleeps past it."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from native.ends import MESSAGES_MAX, Ends

LONG = 20_000
"""Milliseconds that no wait of these tests takes, unless it misses something."""


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


def pair(
    context: zmq.Context[zmq.Socket[bytes]], url: str, queue: int = 0
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes], bytes]:
    """A ROUTER that reports who can't be reached, a DEALER "d" connected to it, and the DEALER's name."""
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for socket in (router, dealer):
        socket.setsockopt(zmq.SNDHWM, queue)
        socket.setsockopt(zmq.RCVHWM, queue)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    dealer.setsockopt(zmq.IDENTITY, b"d")
    router.bind(url)
    dealer.connect(url)
    dealer.send(b"here")
    assert router.recv_multipart() == [b"d", b"here"]
    return router, dealer, b"d"


def all_of(ends: Ends, end: int) -> list[list[bytes]]:
    taken, more = [], True
    while more:
        messages, more = ends.take(end)
        taken += messages
    return taken


def test_messages_come_whole_and_in_order(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, dealer, name = pair(context, "inproc://a")
    ends = Ends()
    end = ends.add(router)
    assert ends.wait(1 << end, 0) == 0
    assert ends.take(end) == ([], False)
    sent = [[b""], [b"one"], [b"x" * 100_000], [b"a", b"b"], [b"", b""], [b"1", b"2", b"3", b"4", b"5"], [b"end"]]
    for parts in sent:
        dealer.send_multipart(parts)
    assert ends.wait(1 << end, LONG) == 1 << end
    # A name and two more: what comes behind is let go, and the next message is whole again.
    assert ends.take(end) == ([[name, *parts[:2]] for parts in sent], False)
    assert ends.wait(1 << end, 0) == 0


def test_a_good_part_is_taken_at_a_time(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, dealer, name = pair(context, "inproc://a")
    ends = Ends()
    end = ends.add(router)
    for i in range(2 * MESSAGES_MAX + 1):
        dealer.send(b"%d" % i)
    assert ends.wait(1 << end, LONG)
    sizes: list[int] = []
    more = True
    while more:
        assert ends.wait(1 << end, 0) == 1 << end, "what is left is seen without another message"
        messages, more = ends.take(end)
        assert messages == [[name, b"%d" % (sum(sizes) + i)] for i in range(len(messages))]
        sizes.append(len(messages))
    assert sizes == [MESSAGES_MAX, MESSAGES_MAX, 1]
    for _ in range(5):
        dealer.send(bytes(1 << 20))
    assert ends.wait(1 << end, LONG)
    messages, more = ends.take(end)
    assert (len(messages), more) == (2, True), "names count, too, so two are over 2 MiB"
    assert len(all_of(ends, end)) == 3


def test_who_has_nothing_is_not_reported(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    first, first_dealer, _ = pair(context, "inproc://a")
    second, second_dealer, _ = pair(context, "inproc://b")
    ends = Ends()
    one, two = ends.add(first), ends.add(second)
    both = 1 << one | 1 << two
    second_dealer.send(b"x")
    assert ends.wait(both, LONG) == 1 << two
    first_dealer.send(b"y")
    assert ends.wait(both, LONG) == both
    assert ends.wait(1 << one, LONG) == 1 << one, "who is not asked for is left out"
    assert len(all_of(ends, two)) == 1
    assert ends.wait(both, LONG) == 1 << one


def test_file_descriptors_are_waited_for_too(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, _, _ = pair(context, "inproc://a")
    ends = Ends()
    socket, fd = ends.add(router), os.eventfd(0)
    try:
        end = ends.add(fd)
        assert ends.wait(1 << socket | 1 << end, 0) == 0
        os.eventfd_write(fd, 1)
        assert ends.wait(1 << socket | 1 << end, LONG) == 1 << end
        assert ends.wait(1 << socket, 0) == 0
    finally:
        os.close(fd)


def test_a_wait_takes_its_time_and_no_longer(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, _, _ = pair(context, "inproc://a")
    ends = Ends()
    end = ends.add(router)
    began = time.monotonic()
    assert ends.wait(1 << end, 80) == 0
    assert 0.079 <= time.monotonic() - began < LONG / 1000


def test_a_signal_ends_a_wait_and_is_handled(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, _, _ = pair(context, "inproc://a")
    ends = Ends()
    end = ends.add(router)
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        while not heard:
            assert ends.wait(1 << end, LONG) == 0
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]


def test_a_full_queue_and_a_stranger_are_told_apart(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    router, dealer, name = pair(context, f"ipc://{tmp_path}/s", queue=4)
    ends = Ends()
    end, other = ends.add(router), ends.add(dealer)
    assert ends.send(end, b"x", to=b"nobody") == errno.EHOSTUNREACH
    sent = 0
    while not ends.send(end, b"%d" % sent + bytes(100_000), to=name):
        sent += 1
    assert ends.send(end, b"x", to=name) == errno.EAGAIN
    assert sent >= 4
    taken: list[list[bytes]] = []
    while len(taken) < sent:
        assert ends.wait(1 << other, LONG), (len(taken), sent)
        taken += all_of(ends, other)
    assert [parts[0].rstrip(b"\0") for parts in taken] == [b"%d" % i for i in range(sent)]
    while ends.send(end, b"again", to=name):  # there is room as soon as the word of it has arrived
        ends.wait(1 << end, 10)
    assert ends.wait(1 << other, LONG)
    assert all_of(ends, other) == [[b"again"]]


def test_there_is_room_for_so_many(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    ends = Ends()
    assert [ends.add(0) for _ in range(32)] == list(range(32))
    with pytest.raises(OSError, match="32"):
        ends.add(0)


def test_a_closed_socket_is_an_error(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, dealer, _ = pair(context, "inproc://a")
    ends = Ends()
    end = ends.add(router)
    dealer.close()
    router.close()
    for act in (lambda: ends.take(end), lambda: ends.wait(1 << end, 0), lambda: ends.send(end, b"x", to=b"d")):
        with pytest.raises(zmq.ZMQError):
            act()


def test_a_message_whose_word_a_send_has_taken_in_is_seen(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """A send handles what is in the socket's mailbox, too, after which the descriptor is quiet."""
    router, dealer, name = pair(context, "inproc://a")
    ends = Ends()
    end = ends.add(router)
    assert ends.take(end) == ([], False)
    dealer.send(b"x")
    time.sleep(0.05)  # a send looks into the mailbox only when a millisecond has passed
    assert ends.send(end, b"y", to=name) == 0
    assert ends.wait(1 << end, LONG) == 1 << end
    assert ends.take(end) == ([[name, b"x"]], False)


@pytest.mark.parametrize("seed", range(4))
def test_no_wait_sleeps_past_a_message(seed: int, context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    """Three senders, each on a thread of its own, that send in fits and starts; a receiver that answers some of it, so
    that commands are taken in by sends, too. A lost wake-up would have it wait LONG."""
    rng = random.Random(seed)
    urls = [f"ipc://{tmp_path}/0", "tcp://127.0.0.1:*", f"ipc://{tmp_path}/2"]
    ends = Ends()
    numbers, dealers = [], []
    for url in urls:
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        for socket in (router, dealer):
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
        router.bind(url)
        dealer.connect(router.getsockopt_string(zmq.LAST_ENDPOINT))
        numbers.append(ends.add(router))
        dealers.append(dealer)
    count = 1500
    pauses = [[rng.choice([0, 0, 0, 0.0002, 0.002]) for _ in range(count)] for _ in urls]
    answers: list[list[bytes]] = [[] for _ in urls]

    def send(which: int) -> None:
        dealer = dealers[which]
        for i in range(count):
            dealer.send_multipart([b"%d" % i] * (1 + i % 2))
            if pauses[which][i]:
                time.sleep(pauses[which][i])
        while len(answers[which]) < count // 10:
            answers[which].append(dealer.recv())

    threads = [threading.Thread(target=send, args=(which,)) for which in range(len(urls))]
    for thread in threads:
        thread.start()
    mask = sum(1 << end for end in numbers)
    got = [0] * len(urls)
    while sum(got) < count * len(urls):
        began = time.monotonic()
        ready = ends.wait(mask, LONG)
        assert ready, (got, time.monotonic() - began)
        for which, end in enumerate(numbers):
            if not ready >> end & 1:
                continue
            messages, _ = ends.take(end)
            for name, *parts in messages:
                assert parts == [b"%d" % got[which]] * (1 + got[which] % 2)
                if got[which] % 10 == 0:
                    assert ends.send(end, b"%d" % got[which], to=name) == 0
                got[which] += 1
    for thread in threads:
        thread.join()
    assert answers == [[b"%d" % i for i in range(0, count, 10)]] * len(urls)
