"""Threads for what may hang on the file system of a plugin: as many as there are jobs; idle ones are used again."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

__all__ = ("Workers",)

_IDLE = 10.0
"""Seconds until a thread without a job exits."""


class Workers:
    """Threads that are started when all others are busy, so that no job waits for one that hangs."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job, which raises nothing, in a thread. It may never return: the threads do not prevent an exit.

        Raises: RuntimeError if the machine has no thread left.
        """
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._jobs.put(job)
                return
        threading.Thread(target=self._run, args=(job,), name="check", daemon=True).start()

    def _run(self, job: Callable[[], None]) -> None:
        while True:
            job()
            with self._lock:
                self._idle += 1
            try:
                job = self._jobs.get(timeout=_IDLE)
            except Empty:
                with self._lock:
                    if self._idle:
                        self._idle -= 1
                        return
                job = self._jobs.get()  # one was submitted at the same moment
