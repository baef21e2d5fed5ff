"""Tests run on the CPU, and their Hub is a stand-in: nothing but localhost can be reached."""

import gc
import os
import socket
import sys
import tempfile
from contextlib import ExitStack

import pytest
from hub_standin import HubStandIn

# Imports leave next to no garbage, and looking for it takes a tenth of their time.
gc.disable()

# The models are tiny: more threads only wait for each other, and one gives the same bits everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# huggingface_hub reads these when it is imported, so the stand-in starts before any test module.
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS_"))]:
    del os.environ[_name]
_session = ExitStack()
_folder = _session.enter_context(tempfile.TemporaryDirectory(prefix="hub-"))
_hub = _session.enter_context(HubStandIn(f"{_folder}/hub", tokens={"hf_x": "org"}))
os.environ |= {
    "HF_ENDPOINT": _hub.endpoint,
    "HF_HOME": f"{_folder}/home",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "no_proxy": "127.0.0.1",
}

_connect = socket.socket.connect


def _connect_locally(self, address):
    if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
        self.close()
        pytest.fail(f"A test tried to reach {address}.")
    _connect(self, address)


socket.socket.connect = _connect_locally


def pytest_collection_finish():
    # The libraries' objects stay until the end, and each collection would look at all of them.
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    if "huggingface_hub" in sys.modules:
        sys.modules["huggingface_hub"].close_session()
    _session.close()


@pytest.fixture(scope="session")
def hub_stand_in():
    """The Hub of the whole session, for fixtures that add repositories."""
    return _hub


@pytest.fixture
def hub(hub_stand_in):
    """The Hub, whose list of requests begins with the test."""
    hub_stand_in.requests.clear()
    yield hub_stand_in
    unknown = [request for request in hub_stand_in.requests if request.status == 501]
    assert not unknown, f"The stand-in lacks {unknown}."
