"""Run Docker-format managed plugins on containerd, without a Docker daemon."""

from moorage._version import __version__ as __version__

__all__ = ("__version__",)
