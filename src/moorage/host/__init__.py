"""What is requested of the kernel: mounts, control groups, processes, and paths that other users or programs control.

Nothing is exported here: import the module that is meant. Imports only ``errors``, ``timeouts`` and ``_lib``.
"""
