"""The package is typed for those who use it."""

from pathlib import Path

import pytest


@pytest.mark.slow  # `.ci/run` has mypy read the same script
def test_a_users_script_passes_mypy_strict():
    api = pytest.importorskip("mypy.api")
    root = Path(__file__).parents[2]
    script = root / "tests" / "contracts" / "user_script.py"
    output, errors, status = api.run(["--config-file", str(root / "pyproject.toml"), str(script)])
    assert status == 0, output + errors
