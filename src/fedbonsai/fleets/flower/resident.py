"""The resident worker: one process on the device that holds torch and the data, and does what apps hand to it.

Flower starts a new process for every message, and importing torch in each takes longer than a small round. The app
hands head and payload over a Unix socket instead, in a folder that only its owner may enter; each end asks the kernel
who the other is and speaks to nobody else.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import threading
from pathlib import Path

from fedbonsai.errors import BadMessage, ConfigError, FedbonsaiError
from fedbonsai.fleets.flower.hand import Hand
from fedbonsai.fleets.flower.limits import HEAD, PAYLOAD

NAME = "worker.sock"
HELLO, PERFORM = 1, 2
OK, REFUSED = 0, 1
_FRAME = struct.Struct("<BIQ")  # kind, bytes of the head, bytes of the payload
_LONGEST = 100  # bytes of a socket's path that every system takes


class Absent(FedbonsaiError):
    """No worker answers at the socket."""


class Resident:
    """Serves one worker at a socket, one task at a time, until `close`.

    Args:
        folder: of the device; made private.
        hand: who does the work.

    Raises:
        ConfigError: the folder cannot hold a socket, or another worker serves it.
    """

    def __init__(self, folder: Path, hand: Hand) -> None:
        self.path, self._hand = folder / NAME, hand
        if len(os.fsencode(self.path)) > _LONGEST:
            raise ConfigError(f"{self.path} is too long a path for a socket; choose a shorter --folder")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        with contextlib.suppress(Absent):
            connect(folder).close()
            raise ConfigError(f"another `fedbonsai join` serves {folder}; stop it, or choose another --name")
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        self.path.chmod(0o600)
        self._socket.listen(8)
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a task that is running ends with the process."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(peer,), daemon=True).start()

    def _talk(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError, EOFError):
            if not _ours(peer):
                return
            kind, head, payload = _read(peer)
            try:
                with self._turn:
                    if kind == HELLO:
                        head, payload = self._hand.hello(head, payload), b""
                    elif kind == PERFORM:
                        head, payload = self._hand.perform(head, payload)
                    else:
                        raise BadMessage(f"kind {kind} of work is not known here")
            except BadMessage as error:
                _write(peer, REFUSED, str(error).encode(), b"")
                return
            _write(peer, OK, head, payload)


class Remote:
    """The worker behind a socket, as an app sees it.

    Args:
        folder: of the device.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hello(self, raw: bytes, payload: bytes = b"") -> bytes:
        """Answer a hello.

        Raises:
            Absent: no worker is there.
            BadMessage: the worker refused it.
        """
        return self._ask(HELLO, raw, payload)[0]

    def perform(self, raw: bytes, payload: bytes) -> tuple[bytes, bytes]:
        """Run a task.

        Raises:
            Absent: no worker is there.
            BadMessage: the worker refused it.
        """
        return self._ask(PERFORM, raw, payload)

    def _ask(self, kind: int, head: bytes, payload: bytes) -> tuple[bytes, bytes]:
        with connect(self._folder) as peer:
            try:
                _write(peer, kind, head, payload)
                state, head, payload = _read(peer)
            except (OSError, EOFError) as error:
                raise Absent(f"the worker of {self._folder} went away in the middle of a task: {error}") from None
        if state != OK:
            raise BadMessage(head.decode(errors="replace"))
        return head, payload


def connect(folder: Path) -> socket.socket:
    """A connection to the worker of a device.

    Raises:
        Absent: there is none, or what is there is not ours.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held = folder.stat()
        if held.st_uid != os.getuid() or stat.S_IMODE(held.st_mode) & 0o077:
            raise Absent(f"{folder} can be entered by others; chmod 700 {folder}")
        peer.connect(str(folder / NAME))
        if not _ours(peer):
            raise Absent(f"the worker of {folder} belongs to another user")
    except OSError as error:
        peer.close()
        raise Absent(f"no worker answers in {folder}: {error.strerror}") from None
    except Absent:
        peer.close()
        raise
    return peer


def _ours(peer: socket.socket) -> bool:
    """Whether the other end is a process of the same user; where the kernel does not say, the folder's mode decides."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", raw)[1] == os.getuid()


def _write(peer: socket.socket, kind: int, head: bytes, payload: bytes) -> None:
    peer.sendall(_FRAME.pack(kind, len(head), len(payload)) + head)
    if payload:  # who has read all that he waits for may have hung up
        peer.sendall(payload)


def _read(peer: socket.socket) -> tuple[int, bytes, bytes]:
    kind, head, payload = _FRAME.unpack(_exactly(peer, _FRAME.size))
    if head > HEAD or payload > PAYLOAD:
        raise EOFError(f"a frame of {head} and {payload} bytes")
    return kind, _exactly(peer, head), _exactly(peer, payload)


def _exactly(peer: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = peer.recv(min(1 << 20, count - len(data)))
        if not part:
            raise EOFError("the connection ended too early")
        data += part
    return bytes(data)
