"""Where processes find one another: heard signals, one address, and one line for what keeps them apart."""

import os
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime.errors import UserError
from runtime.meeting import listening_at, meet
from runtime.program import Terminated, terminating

LONG, SHORT = 120.0, 0.3  # seconds: more than anything takes; less than it takes to come


@pytest.fixture
def place(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.delenv("GLM_STORE_SOCKET", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_meet_whoever_comes_first(place, order):
    with ThreadPoolExecutor(3) as pool:
        stores = [job.result() for job in [pool.submit(meet, rank, 3, LONG) for rank in order]]
    stores[0].set("said", "yes")
    assert all(store.get("said") == b"yes" for store in stores)


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_is_heard_while_the_others_are_waited_for(place, rank):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    with pytest.raises(Terminated), terminating():
        timer.start()
        meet(rank, 2, LONG)
    timer.join()


@pytest.fixture
def held(place, monkeypatch):
    """The launcher's socket, at which nobody serves yet."""
    with socket.create_server(("127.0.0.1", place)):
        monkeypatch.setenv("GLM_STORE_SOCKET", "0")
        yield


def test_sigterm_is_heard_while_the_first_process_does_not_serve_yet(held):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    with pytest.raises(Terminated), terminating():
        timer.start()
        meet(1, 2, 20.0)
    timer.join()


def test_a_first_process_that_ends_before_it_serves_is_not_waited_for(held, monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv("GLM_FIRST_PROCESS", str(gone.pid))
    with pytest.raises(UserError, match=r"cannot meet at 127.0.0.1, port \d+ .*: the first process has ended"):
        meet(1, 2, 20.0)


def test_who_does_not_come_is_one_line(place):
    with pytest.raises(UserError, match=r"not all of 2 processes \(WORLD_SIZE\) have come; start as many"):
        meet(0, 2, SHORT)
    with pytest.raises(UserError, match=r"the first process cannot be reached at 127.0.0.1, port \d+ \(MASTER_ADDR"):
        meet(1, 2, SHORT)


def test_a_port_that_is_taken_is_one_line(place):
    with socket.create_server(("127.0.0.1", place)), pytest.raises(UserError, match=r"cannot meet at 127.0.0.1, port"):
        meet(0, 2, LONG)


@pytest.mark.parametrize("name, value", [("MASTER_ADDR", None), ("MASTER_PORT", None), ("MASTER_PORT", "x")])
def test_without_a_place_it_is_one_line(place, monkeypatch, name, value):
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="MASTER_ADDR or MASTER_PORT does not say where they meet"):
        meet(0, 2, LONG)


class TestListening:
    def test_at_the_address_that_is_named_alone(self):
        number = listening_at("127.0.0.1", 0)
        with socket.socket(fileno=number) as listening:
            assert listening.getsockname()[0] == "127.0.0.1"

    @pytest.mark.parametrize("address", ["localhost", "192.0.2.1", ""])
    def test_at_all_where_it_is_a_name_or_not_ours(self, address):
        assert listening_at(address, 0) is None

    def test_the_store_is_not_at_other_addresses(self, place):
        store = meet(0, 1, LONG)
        with socket.socket() as other, pytest.raises(OSError, match="refused"):
            other.connect(("127.0.0.2", place))
        store.set("a", "b")
