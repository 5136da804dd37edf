"""The app that Flower runs on the server: it gives the Grid to whoever drives a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp


def server_app(drive: Callable[[Grid, Mapping[str, Any]], None]) -> ServerApp:
    """The app.

    Args:
        drive: does the run, for a Grid and the run's configuration.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        drive(grid, dict(context.run_config))

    return app
