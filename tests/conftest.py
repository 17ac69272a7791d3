"""What holds for all tests."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# An example that takes long says that the machine is busy, and nothing of the law that it is an example of.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

# Debian's nginx lies where not everybody's PATH leads; what is tested looks there as well.
os.environ["PATH"] += os.pathsep + "/usr/sbin"


def pytest_configure() -> None:
    """Whoever starts the tests in the background (nohup, &) ignores signals, and children inherit that: theirs are as usual.

    A signal that is handled here is back at its default in a program that is started from here.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
