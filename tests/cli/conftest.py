"""Most commands load the same folder."""

import pytest
from testing_utils import load_each_folder_once


@pytest.fixture(autouse=True)
def load_once(monkeypatch):
    load_each_folder_once(monkeypatch)
