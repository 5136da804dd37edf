"""Devices on hosts of their own: network namespaces behind slow links, and a relay that takes its time."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time

NET = "10.231"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A namespace with one link to this machine, shaped both ways by ``tbf``.

    Args:
        number: of the host.
        rate: of the link, as ``tc`` writes it.
    """

    def __init__(self, number: int, rate: str) -> None:
        self.name, self.near, self.far = f"fb-{os.getpid()}-{number}", f"{NET}.{number}.1", f"{NET}.{number}.2"
        here, there = f"fb{number}h{os.getpid()}"[:15], f"fb{number}t{os.getpid()}"[:15]
        ip("netns", "add", self.name)
        try:
            ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", self.name)
            ip("addr", "add", f"{self.near}/24", "dev", here)
            ip("link", "set", here, "up")
            ip("-n", self.name, "addr", "add", f"{self.far}/24", "dev", there)
            ip("-n", self.name, "link", "set", there, "up")
            ip("-n", self.name, "link", "set", "lo", "up")
            for where, device in (((), here), (("-n", self.name), there)):
                words = ["tc", *where, "qdisc", "add", "dev", device, "root", "tbf"]
                subprocess.run([*words, "rate", rate, "burst", "16kb", "latency", "400ms"], check=True)
        except subprocess.CalledProcessError:
            self.close()
            raise

    @property
    def inside(self) -> tuple[str, ...]:
        """Command that runs another one there."""
        return ("ip", "netns", "exec", self.name)

    def close(self) -> None:
        """Remove it, and its link with it."""
        ip("netns", "del", self.name)


def possible() -> bool:
    """Whether this machine lets us make namespaces and shape links."""
    try:
        host = Host(250, "1mbit")
    except (OSError, subprocess.CalledProcessError):
        return False
    host.close()
    return True


class Relay:
    """Passes TCP connections on, each piece a while later.

    Args:
        address: to listen on.
        port: on this machine, to pass on to.
        delay: seconds, each way.
    """

    def __init__(self, address: str, port: int, delay: float) -> None:
        self._to, self._delay = ("127.0.0.1", port), delay
        self._socket = socket.create_server((address, 0))
        self.address = f"{address}:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                device, _ = self._socket.accept()
                threading.Thread(target=self._pair, args=(device,), daemon=True).start()

    def _pair(self, device: socket.socket) -> None:
        with device, contextlib.suppress(OSError), socket.create_connection(self._to) as server:
            back = threading.Thread(target=self._pass, args=(server, device), daemon=True)
            back.start()
            self._pass(device, server)
            back.join()

    def _pass(self, a: socket.socket, b: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(1 << 16):
                time.sleep(self._delay)
                b.sendall(data)
        for end in (a, b):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop."""
        self._socket.close()
