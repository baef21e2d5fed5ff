"""How the example scripts end when something is wrong with what they were given."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_as_one_sentence() -> Iterator[None]:
    """End the process with one sentence, and exit code 1, where an input is wrong.

    With the environment variable `DIFFUSERS_CFLD_TRACEBACK` set, the traceback is shown instead.

    Yields:
        Nothing.

    Raises:
        SystemExit: In the place of an `OSError` or a `ValueError`.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if os.environ.get("DIFFUSERS_CFLD_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error} (DIFFUSERS_CFLD_TRACEBACK=1 shows where)")
