from __future__ import annotations

import pytest

from diffusers_cfld.script_errors import errors_as_one_sentence


@pytest.mark.parametrize("error", [ValueError("wrong"), FileNotFoundError("wrong")])
def test_wrong_input_ends_in_one_sentence_or_a_traceback(monkeypatch, error):
    monkeypatch.delenv("DIFFUSERS_CFLD_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended, errors_as_one_sentence():
        raise error
    assert ended.value.code == f"{type(error).__name__}: wrong (DIFFUSERS_CFLD_TRACEBACK=1 shows where)"
    monkeypatch.setenv("DIFFUSERS_CFLD_TRACEBACK", "1")
    with pytest.raises(type(error), match="wrong"), errors_as_one_sentence():
        raise error


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), errors_as_one_sentence():
        raise ZeroDivisionError
