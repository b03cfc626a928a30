"""Where etcd's clients come in: TCP addresses, and sockets in the file system.

    tcp://HOST:PORT    tls://HOST:PORT       the edge binds them; several gateway processes may share one
    unix:///PATH       unixs:///PATH         bound here; the first gateway process has them alone

A socket's file outlives its process. Whoever binds the next one takes it away, but only if nobody accepts connections
there and it is a socket: another node's door and a file that happens to have that name stay, and the node says that the
address is taken. Who may connect is a matter of the directory's permissions and the umask, as with etcd.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from native.edge import Edge

PATH_BYTES_MAX = 107
"""What Linux has room for."""
_BACKLOG = 4096


def encrypted(url: str) -> bool:
    return url.startswith(("tls:", "unixs:"))


def path(url: str) -> str:
    """Of a socket in the file system; "" for a TCP address."""
    scheme, _, rest = url.partition("://")
    return rest if scheme in ("unix", "unixs") else ""


def address(url: str) -> tuple[int, str | tuple[str, int]]:
    """Family and address, as Python's sockets have it."""
    if path(url):
        return socket.AF_UNIX, path(url)
    host, _, port = url.partition("://")[2].rpartition(":")
    return (socket.AF_INET6 if host.startswith("[") else socket.AF_INET), (host.strip("[]"), int(port))


def try_it(url: str) -> None:
    """Raises OSError if nobody can listen there now."""
    family, where = address(url)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if isinstance(where, str):
            _make_way(where)
            probe.bind(where)
            os.unlink(where)
        else:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)


def open_all(front: Edge, urls: Iterable[str], *, first: bool, several: bool) -> None:
    """Listen. Raises OSError whose filename is the URL.

    Args:
      first: this is the first gateway process. several: it isn't the only one.
    """
    for url in urls:
        family, where = address(url)
        try:
            if not isinstance(where, str):
                front.listen(*where, tls=encrypted(url), reuse_port=several)
            elif first:
                _make_way(where)
                with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
                    listener.bind(where)
                    listener.listen(_BACKLOG)
                    front.listen_on(listener.detach(), tls=encrypted(url))
        except OSError as error:
            raise OSError(error.errno, error.strerror, url) from error


def close_all(urls: Iterable[str]) -> None:
    """Take away what open_all() has put into the file system, once nobody listens."""
    for where in filter(None, map(path, urls)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(where)


def _make_way(where: str) -> None:
    """Raises OSError if somebody or something is there."""
    try:
        mode = os.lstat(where).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file of that name, which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        with contextlib.suppress(ConnectionRefusedError):
            probe.connect(where)
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    os.unlink(where)
