"""Record what was left out of a data set and why: one broken file in a hundred thousand must not end a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_IN_A_ROW = 32
"""Number of unreadable files in a row that ends a run."""

_MAX_LOGGED, _MAX_IN_SUMMARY = 20, 5

logger = logging.getLogger(__name__)


class UnreadableImageError(ValueError):
    """An image is missing or damaged, or does not fit its keypoints.

    Args:
        path: Its path, or its name if it was passed as bytes.
        reason: What is wrong with it, worded to follow the path in a sentence.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"'{path}' {reason}.")
        self.path, self.reason = path, reason


class UnreadableDataError(ValueError):
    """So much of the data cannot be used that there is no point in continuing.

    Args:
        message: The message. A `DataLoader` raises the error of a worker process again, with the worker's traceback
            before the message; the traceback is removed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())

    @classmethod
    def after(cls, skipped: Sequence[tuple[str, str]]) -> UnreadableDataError:
        """Build the error from the images that could not be used.

        Args:
            skipped: (path, reason) of each, at least one.

        Returns:
            The error.
        """
        path, reason = skipped[0]
        return cls(
            f"{len(skipped)} files in a row cannot be used; the first is '{path}', which {reason}. Check that the "
            "data set is complete and that its path is right."
        )


class SkipReport:
    """Counts and names the files that were skipped.

    The first 20 files are logged as warnings; all of them are kept with the reason. Data sets run in worker processes,
    so the files that they skip are part of the batch, as `batch["skipped"]`, and the training process adds them here.

    Attributes:
        files: For each path, a dict of `reason`, worded to follow the path in a sentence, and `times`, how often the
            file was skipped.

    Examples:
        >>> from diffusers_cfld.data import SkipReport
        >>> report = SkipReport()
        >>> report.update([("a.jpg", "does not exist"), ("a.jpg", "does not exist")])
        >>> report.summary()
        "1 file was skipped, 2 times in all: 'a.jpg' (does not exist)."
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] = {}

    def add(self, path: str, reason: str) -> None:
        """Add a file.

        Args:
            path: The file, or its name in the data set.
            reason: What is wrong with it; the first reason given for a file is kept.
        """
        if path in self.files:
            self.files[path]["times"] += 1
            return
        self.files[path] = {"reason": reason, "times": 1}
        if len(self) <= _MAX_LOGGED:
            logger.warning("Skipping '%s': %s.", path, reason)
        elif len(self) == _MAX_LOGGED + 1:
            logger.warning("More than %d files were skipped; the others are not logged.", _MAX_LOGGED)

    def update(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Add the files of a batch.

        Args:
            skipped: (path, reason) of each, as in `batch["skipped"]`.
        """
        for path, reason in skipped:
            self.add(path, reason)

    def summary(self) -> str:
        """Describe what was skipped.

        Returns:
            One sentence, which names up to five files.
        """
        if not self.files:
            return "No file was skipped."
        times = sum(entry["times"] for entry in self.files.values())
        named = [f"'{path}' ({entry['reason']})" for path, entry in list(self.files.items())[:_MAX_IN_SUMMARY]]
        rest = f" and {len(self) - len(named)} more" if len(self) > len(named) else ""
        return (
            ("1 file was skipped" if len(self) == 1 else f"{len(self)} files were skipped")
            + (f", {times} times in all" if times > len(self) else "")
            + f": {', '.join(named)}{rest}."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the report as plain dicts, for JSON.

        Returns:
            `{"files": {path: {"reason": ..., "times": ...}}}`.
        """
        return {"files": {path: dict(entry) for path, entry in self.files.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the contents of the report by those of a saved one.

        Args:
            state: From `state_dict()`.
        """
        self.files = {path: dict(entry) for path, entry in state["files"].items()}

    def __len__(self) -> int:
        return len(self.files)
