"""Devices on hosts of their own: network namespaces behind slow links that lose packets, and a relay that takes its time.

Packets are lost by a classic BPF program at the ends of a link, which kernels without ``netem`` have too.
"""

from __future__ import annotations

import contextlib
import os
import re
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
        loss: share of the packets that get lost, each way.
    """

    def __init__(self, number: int, rate: str, loss: float = 0.0) -> None:
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
            self._ends = ((), here), (("-n", self.name), there)
            for end in self._ends:
                self._tc(end, "qdisc", "add", "root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
                if loss:
                    self._tc(end, "qdisc", "add", "clsact")
                    self._tc(end, "filter", "add", "ingress", "bpf", "da", "bytecode", _dropping(loss))
        except subprocess.CalledProcessError:
            self.close()
            raise

    def _tc(self, end: tuple[tuple[str, ...], str], what: str, how: str, *more: str) -> str:
        where, device = end
        words = ["tc", *where, "-s", what, how, "dev", device, *more]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def lost(self) -> list[int]:
        """Packets that were lost so far at each end."""
        shown = (self._tc(end, "qdisc", "show", "clsact") for end in self._ends)
        return [int(re.search(r"dropped (\d+)", text)[1]) for text in shown]

    @property
    def inside(self) -> tuple[str, ...]:
        """Command that runs another one there."""
        return ("ip", "netns", "exec", self.name)

    def close(self) -> None:
        """Remove it, and its link with it."""
        ip("netns", "del", self.name)


def _dropping(share: float) -> str:
    """A program that lets a packet pass (0) or drops it (2) by a number that the kernel draws."""
    draw = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
    return f"4,32 0 0 {draw},53 1 0 {int(share * (1 << 32))},6 0 0 2,6 0 0 0"


def possible(loss: float = 0.0) -> bool:
    """Whether this machine lets us make namespaces, shape links, and lose packets."""
    try:
        host = Host(251 if loss else 250, "1mbit", loss)  # a link is removed a while after its host
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
