"""The app that Flower runs on a device: it hands work to the resident worker, or does it here where there is none."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.client import client_app
from fedbonsai.fleets.flower.hand import PLAIN, SETTING, Hand
from fedbonsai.fleets.flower.resident import Absent, Remote, connect

log = logging.getLogger("fedbonsai")


def device_app(methods: Callable[[], object]) -> ClientApp:
    """The app.

    Args:
        methods: imports all methods that are installed; called only when the work is done in this very process.
    """

    def hand_of(context: Context) -> Hand:
        file = Path(str(context.node_config.get(SETTING, "")))
        if not file.is_file():
            raise ConfigError(f"node config {SETTING} = {str(file)!r} is no file; start devices with: fedbonsai join")
        if not os.environ.get(PLAIN):
            try:
                connect(file.parent).close()
                return Remote(file.parent)
            except Absent as error:
                log.warning("%s; the work is done in the app's own process, which imports torch first", error)
        from fedbonsai.fleets.flower.device import read_device

        methods()
        return read_device(file).worker()

    return client_app(hand_of)
