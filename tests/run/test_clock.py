"""A run's clocks go on where earlier attempts left them; work and idleness are told apart."""

import subprocess
import sys
import time

from framework.run.clock import Clock


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_processor_time_counts_work_and_not_waiting() -> None:
    clock = Clock(100.0, 50.0)
    time.sleep(0.3)
    assert clock.seconds >= 100.3
    assert 50.0 <= clock.cpu_seconds < 50.2
    burn(0.3)
    assert clock.cpu_seconds >= 50.28  # told in hundredths


def test_processor_time_of_ended_children_counts() -> None:
    clock = Clock()
    burns = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", burns], check=True)
    assert clock.cpu_seconds >= 0.48
