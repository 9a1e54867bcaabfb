"""How the processes of a group meet, and how each learns that another is gone.

A collective operation cannot tell a process that is slow, as one that reads images for an hour, from one that is dead.
The operating system can: it closes the connections of a process that ends, and by probes (TCP keepalive) it finds a
node or network that no longer answers. So every process keeps a connection to the first, which nothing else uses.
"""

import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from snn.runtime.errors import UserError, check

try:
    import fcntl
except ImportError:
    # Not a POSIX system.
    fcntl = None  # type: ignore[assignment]

MEETING = 300.0
"""Seconds within which all processes of a group must have started."""
SILENCE = 60
"""Seconds without an answer after which a node or the network counts as broken."""
GRACE = 5.0
"""Seconds that a process has to end by itself once another is gone, and in which the cause of a failure comes in."""
DONE = b"done"
TOKEN = 16
RANK = 4


class GroupError(UserError):
    """A process of the group is gone, or cannot be reached: started again, the work may go on."""

    status = 75  # EX_TEMPFAIL of sysexits.h


class Lifeline:
    """Connections of one process of a group of ``size``: the first has one to each of the others, they one to it.

    Args:
        rank: of this process.
        size: of the group.
        host: address of the first process's node.
        publish: called in the first process with a text that the others can read.
        read: in the others, the latest such text, waiting for the first; it may be one of an earlier attempt.

    Raises:
        UserError: not all processes came within :data:`MEETING` seconds.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        host: str,
        publish: Callable[[str], None],
        read: Callable[[], str],
    ) -> None:
        self.cause = ""
        """Why the group has ended early; empty: it has not."""
        self._known, self._over = threading.Event(), threading.Event()
        deadline = time.monotonic() + MEETING
        if rank:
            self.token, self._peers = _call(rank, host, read, deadline)
        else:
            self.token = secrets.token_hex(TOKEN // 2)
            self._peers = _receive(self.token, size, publish, deadline)
        for connection in self._peers.values():
            _probe(connection)
        self._names = {n: f"process {n} ({_plain(c.getpeername()[0])})" for n, c in self._peers.items()}
        threading.Thread(target=self._watch, daemon=True).start()

    def failed(self, seconds: float) -> bool:
        """Whether another process is gone, which may come to light within so many seconds."""
        return self._known.wait(seconds)

    def close(self, words: str | None = None) -> None:
        """This process ends: all is well, or the others are told why in these ``words``."""
        self._over.set()
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(DONE if words is None else words.encode())
                connection.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        """Wait for one that ends early; if it does, this process must end, too, within :data:`GRACE` seconds."""
        with selectors.DefaultSelector() as selector:
            for number, connection in self._peers.items():
                selector.register(connection, selectors.EVENT_READ, number)
            while selector.get_map() and not self.cause:
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)
                    self.cause = self.cause or self._last_words(key.data)
        if self.cause:
            self._known.set()
            self._end()

    def _last_words(self, number: int) -> str:
        """Why process ``number`` has ended, in words; empty: it is done."""
        said, name = b"", self._names[number]
        try:
            while part := self._peers[number].recv(4096):
                said += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        except OSError as error:
            return f"{name} has not answered for {SILENCE} s ({error.strerror}): its node or the network is down"
        if said == DONE:
            return ""
        if not said:
            return f"{name} has ended without a word: it was killed, or has crashed"
        words = said.decode(errors="replace")
        # The first process passes on what it was told.
        return words if words.startswith("process ") else f"{name} has ended: {words}"

    def _end(self) -> None:
        if not self._over.wait(GRACE):
            # The main thread waits in a collective operation or computes. Files are whole at any time.
            self.close(self.cause)
            print(f"{_program}: error: {self.message}", file=sys.stderr, flush=True)
            os._exit(GroupError.status)

    @property
    def interface(self) -> str | None:
        """The network interface over which the others are reached, if the system tells."""
        return interface_of(_plain(next(iter(self._peers.values())).getsockname()[0]))

    @property
    def message(self) -> str:
        """What to tell the user when :attr:`cause` is known."""
        return f"{self.cause}; start the command on all nodes again, with --resume to go on from the last checkpoint"


def _receive(token: str, size: int, publish: Callable[[str], None], deadline: float) -> dict[int, socket.socket]:
    """In the first process: a connection from each of the others."""
    peers: dict[int, socket.socket] = {}
    with _listening() as server:
        publish(f"{token} {server.getsockname()[1]}")
        while len(peers) < size - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
                # Whoever else knocks, as scanners of ports do, is not waited for.
                connection.settimeout(2.0)
                hello = connection.recv(TOKEN + RANK)
            except OSError:
                check(
                    time.monotonic() < deadline,
                    f"{len(peers) + 1} of {size} processes came within {MEETING:.0f} s: start the command on all "
                    "nodes, and see what it says there",
                )
                continue
            if hello[:TOKEN] == token.encode() and len(hello) == TOKEN + RANK:
                connection.settimeout(None)
                peers[int.from_bytes(hello[TOKEN:])] = connection
            else:
                connection.close()
    for connection in peers.values():
        connection.sendall(token.encode())
    return peers


def _listening() -> socket.socket:
    """A server at a free port, for both versions of IP where the system can."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
    return socket.create_server(("", 0), backlog=512)


def _call(rank: int, host: str, read: Callable[[], str], deadline: float) -> tuple[str, dict[int, socket.socket]]:
    """In the others: the token of this attempt, and a connection to the first process."""
    while True:
        token, port = read().split()
        try:
            left = max(0.01, deadline - time.monotonic())
            connection = socket.create_connection((host, int(port)), timeout=left)
            connection.sendall(token.encode() + rank.to_bytes(RANK))
            # It answers once all have come.
            if connection.recv(TOKEN) == token.encode():
                connection.settimeout(None)
                return token, {0: connection}
            connection.close()
        except OSError:
            # Text of an earlier attempt, whose process is gone.
            pass
        check(
            time.monotonic() < deadline,
            f"process {rank} did not reach the first one at {host}, port {port}, within {MEETING:.0f} s: see what it "
            "says there, and whether a firewall lies between the nodes",
        )
        time.sleep(0.2)


def _probe(connection: socket.socket) -> None:
    """Have the system ask the other side whether it is there, and give up after :data:`SILENCE` seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = 3
    seconds = max(1, SILENCE // (probes + 1))
    for name, value in (("TCP_KEEPIDLE", seconds), ("TCP_KEEPINTVL", seconds), ("TCP_KEEPCNT", probes)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _plain(address: str) -> str:
    """An IPv4 address as it is written by itself."""
    return address.removeprefix("::ffff:")


def interface_of(address: str) -> str | None:
    """The name of the network interface that has this IPv4 address, if the system tells."""
    if fcntl is None:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                # SIOCGIFADDR of Linux.
                record = fcntl.ioctl(probe, 0x8915, name.encode().ljust(256, b"\0"))
                if socket.inet_ntoa(record[20:24]) == address:
                    return name
    return None


_current: Lifeline | None = None
_program = ""


def tie(lifeline: Lifeline) -> None:
    """Make this the lifeline of the command that runs in :func:`tied`."""
    global _current
    _current = lifeline


@contextlib.contextmanager
def tied(program: str) -> Iterator[None]:
    """The command ``program`` inside may :func:`tie` itself to others: each then learns of what ends another early.

    An error that has such a cause becomes a :class:`GroupError` that names it.
    """
    global _current, _program
    _program = program
    words: str | None = "it failed"
    try:
        yield
        words = None
    except SystemExit as stop:
        words = words if stop.code else None
        raise
    except KeyboardInterrupt:
        words = "it was interrupted"
        raise
    except Exception as error:
        mendable = isinstance(error, UserError | OSError)
        words = " ".join(str(error).split()) if mendable else f"{type(error).__name__}, see what it says there"
        # A collective operation may fail a little before its cause is known, and says less.
        collective = isinstance(error, RuntimeError) or isinstance(error.__cause__, RuntimeError)
        if _current and collective and _current.failed(GRACE / 2):
            words = _current.cause
            raise GroupError(_current.message) from error
        raise
    finally:
        if _current:
            _current.close(words)
            _current = None
