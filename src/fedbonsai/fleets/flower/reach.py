"""Whether a device can reach its server, asked once before it joins: Flower would only say that it cannot connect."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

from fedbonsai.errors import ConfigError

FAST, SLOW = 5.0, 305.0  # seconds by which a signature's time may be ahead of the server's clock, and behind it
CLOCK = (9, 10)  # of OpenSSL: not yet valid, expired
PATIENCE = 10.0  # seconds


def reach(server: str, ca: Path) -> str:
    """What keeps this device from its server for now; empty when nothing does.

    Args:
        server: host and port.
        ca: its certificate authority.

    Raises:
        ConfigError: what waiting does not mend: a strange certificate, a wrong clock, no Flower there.
    """
    host, _, port = server.rpartition(":")
    if not 0 < int(port) < 65536:
        raise ConfigError(f"server {server!r}: expected a port from 1 to 65535")
    try:
        trusted = ssl.create_default_context(cafile=str(ca))
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"--ca {ca} is no certificate: {error}; copy ca.crt from the server's folder") from None
    link = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=PATIENCE, context=trusted)
    try:
        link.request("GET", "/")
        told = link.getresponse().getheader("date")
        now = time.time()
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(_strange(error, server, host, ca)) from None
    except (ssl.SSLError, http.client.HTTPException) as error:
        raise ConfigError(f"{server} answers, but is no server of fedbonsai: {error}; check address and port") from None
    except socket.gaierror as error:
        return f"the name {host} is not known here: {error.strerror}"
    except OSError as error:
        return f"{server} does not answer: {error.strerror or error}; does `fedbonsai serve` run there?"
    finally:
        link.close()
    if told is not None:
        # the header has whole seconds, cut off
        _same_time(now - parsedate_to_datetime(told).timestamp() - 0.5, server)
    return ""


def _strange(error: ssl.SSLCertVerificationError, server: str, host: str, ca: Path) -> str:
    if error.verify_code in CLOCK:
        return (
            f"the certificate of {server} does not hold today: {error.verify_message}; this clock says "
            f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC. Set it, or renew the certificate on the server: "
            f"fedbonsai keys server {host}"
        )
    if "match" in error.verify_message.lower():
        return (
            f"the certificate of {server} is for other names: {error.verify_message.rstrip('.')}; make one on the "
            f"server that names it (fedbonsai keys server {host} ...) and restart fedbonsai serve"
        )
    return (
        f"{server} is not the server of --ca {ca}: CERTIFICATE_VERIFY_FAILED, {error.verify_message}; copy ca.crt "
        "from the server's folder again, or somebody pretends to be it"
    )


def _same_time(ahead: float, server: str) -> None:
    if not -SLOW < ahead < FAST:
        way = "ahead of" if ahead > 0 else "behind"
        raise ConfigError(
            f"this clock is {abs(ahead):.0f} s {way} that of {server}, which refuses signatures more than {FAST:g} s "
            f"ahead or {SLOW:g} s behind; set it, such as: timedatectl set-ntp true"
        )
