import os
import subprocess
import sys
import threading
import time

import pytest
from bench.machine import cpu_seconds

THREAD_SECONDS = 0.1


def use_processor() -> None:
    began = time.thread_time()
    while time.thread_time() - began < THREAD_SECONDS:
        pass


def test_processor_time_of_a_thread_stays_counted_after_its_exit() -> None:
    before = cpu_seconds(os.getpid())
    thread = threading.Thread(target=use_processor)
    thread.start()
    thread.join()
    used = round(cpu_seconds(os.getpid()) - before, 9)  # of the nanoseconds that the clock counts
    assert used >= THREAD_SECONDS


def test_processor_time_is_of_the_process_with_that_pid() -> None:
    program = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        used = cpu_seconds(process.pid)
        process.communicate(b"\n")
    assert used >= 0.2


def test_processor_time_of_a_missing_process_is_an_error() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(OSError, match="Invalid argument"):
        cpu_seconds(process.pid)
