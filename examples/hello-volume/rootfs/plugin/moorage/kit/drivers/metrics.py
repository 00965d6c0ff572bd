"""Metrics collectors: ``docker.metricscollector/1.0``. dockerd's metrics are on a socket of its own.

Source: moby's daemon/internal/metrics/plugin_unix.go.
"""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from moorage.kit.driver import Driver, DriverCall, Eventually
from moorage.kit.options import Limits

__all__ = ("METRICS_SOCKET", "MetricsDriver")

METRICS_SOCKET = Path("/run/docker/metrics.sock")
_REQUEST = b"GET /metrics HTTP/1.0\r\nHost: metrics\r\n\r\n"


class MetricsDriver(Driver):
    """A metrics collector."""

    kind: ClassVar[str] = "MetricsCollector"
    calls: ClassVar[Mapping[str, DriverCall]] = {
        "StartMetrics": DriverCall("start_metrics"),
        "StopMetrics": DriverCall("stop_metrics"),
    }

    def start_metrics(self) -> Eventually[None]:
        """The socket can be read; may be called more than once."""
        raise NotImplementedError

    def stop_metrics(self) -> Eventually[None]:
        """The socket will not be served any more."""
        raise NotImplementedError

    def read(self, path: Path = METRICS_SOCKET) -> str:
        """The metrics in Prometheus' text format.

        Raises:
            OSError: no daemon serves them
        """
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(Limits().receive)
            peer.connect(str(path))
            peer.sendall(_REQUEST)
            answer = b"".join(iter(lambda: peer.recv(65536), b""))
        head, _, text = answer.partition(b"\r\n\r\n")
        status = head.split(b" ", 2)[1:2]
        if status != [b"200"]:
            raise OSError(f"the daemon answers {head[:80]!r} instead of metrics")
        return text.decode(errors="replace")
