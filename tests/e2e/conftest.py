"""One daemon on the demo model for all tests that only ask it; `start` gives a test daemons of its own."""

import pytest

from daemon import DAKD, MODEL, Daemon


@pytest.fixture(scope="session")
def dakd():
    assert DAKD.exists(), f"{DAKD} is not built"
    assert MODEL.exists(), f"{MODEL} is missing"
    with Daemon() as daemon:
        yield daemon
        daemon.wait_idle()


@pytest.fixture
def start():
    running = []

    def begin(*flags, **options):
        running.append(Daemon(*flags, **options))
        return running[-1]

    yield begin
    for daemon in running:
        daemon.close()
