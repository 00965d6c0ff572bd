"""The version of Moorage, read by the build and by ``moorage version``."""

__version__ = "0.1.0"
