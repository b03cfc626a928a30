"""Sockets in the file system: whose file may be taken away, and whose not."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from cluster import doors
from native.edge import Edge


def test_the_file_of_one_who_has_gone_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.is_socket()
    doors.try_it(f"unix://{path}")
    assert not path.exists(), "it was only tried"


def test_one_who_listens_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        with pytest.raises(OSError, match="already in use") as taken:
            doors.try_it(f"unix://{path}")
        assert taken.value.errno == errno.EADDRINUSE
        front = Edge([])
        with pytest.raises(OSError, match="already in use") as refused:
            doors.open_all(front, [f"unix://{path}"], first=True, several=False)
        assert refused.value.filename == f"unix://{path}"
        front.close()
        assert path.is_socket()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("dear")
    with pytest.raises(OSError, match="no socket"):
        doors.try_it(f"unixs://{path}")
    assert path.read_text() == "dear"


def test_where_nobody_can_listen_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        doors.try_it(f"unix://{tmp_path}/no/s")


def test_one_process_has_the_door_and_takes_it_away(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/s"
    first, second = Edge([]), Edge([])
    doors.open_all(first, [url], first=True, several=True)
    doors.open_all(second, [url], first=False, several=True)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(doors.path(url))
        client.send(b"GET ")
        polled = (first.poll(1000) for _ in range(20))
        assert any(batch.events for batch in polled), "it is served"
    first.close()
    second.close()
    doors.close_all([url])
    assert not (tmp_path / "s").exists()
    doors.close_all([url])


def test_a_socket_the_edge_cannot_take_is_an_error() -> None:
    front = Edge([])
    listener = socket.socket()
    listener.listen()
    with pytest.raises(OSError, match="Invalid argument"):  # no certificate was read
        front.listen_on(listener.detach(), tls=True)
    front.close()


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("tcp://127.0.0.1:1", (socket.AF_INET, ("127.0.0.1", 1))),
        ("tls://[::1]:2", (socket.AF_INET6, ("::1", 2))),
        ("unixs:///a/b", (socket.AF_UNIX, "/a/b")),
    ],
)
def test_addresses(url: str, meant: object) -> None:
    assert doors.address(url) == meant
