"""A few threads that run jobs; they are started when they are needed. ``concurrent.futures`` would cost 2 MB more."""

import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue

from moorage.kit.driver import log

__all__ = ("ThreadPool",)


class ThreadPool:
    """Runs jobs, each in one of at most ``limit`` threads, which end with the process."""

    def __init__(self, limit: int, finished: Callable[[], None]) -> None:
        """``finished`` is called in a thread after each job."""
        self._finished = finished
        self._limit = limit
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._unfinished = 0

    @property
    def unfinished(self) -> int:
        """Jobs that run or wait."""
        return self._unfinished

    def run(self, job: Callable[[], None]) -> None:
        """Run a job soon."""
        with self._lock:
            self._unfinished += 1
            is_full = self._threads >= min(self._limit, self._unfinished)
            self._threads += not is_full
        self._jobs.put(job)
        if not is_full:
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except Exception:  # noqa: BLE001 - a thread that ended would be missing from then on
                log(traceback.format_exc().rstrip())
            finally:
                del job
                with self._lock:
                    self._unfinished -= 1
                self._finished()
