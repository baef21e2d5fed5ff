"""What was left out of a data set and why: one broken file among a hundred thousand must not end a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["MAX_TRIES", "SkipReport", "UnreadableDataError"]

MAX_TRIES = 32
"""How many unreadable files in a row end a run."""

logger = logging.getLogger(__name__)


class UnreadableDataError(ValueError):
    """So much of the data cannot be read that going on makes no sense.

    Args:
        message: One sentence. A `DataLoader` builds the error of a worker again, with the worker's traceback as the
            message: of that the sentence is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())

    @classmethod
    def after(cls, skipped: Sequence[tuple[str, str]]) -> UnreadableDataError:
        """Build the error for pictures that could not be read one after the other.

        Args:
            skipped: Pairs (path, reason), at least one.

        Returns:
            The error.
        """
        path, reason = skipped[0]
        return cls(
            f"Expected readable pictures, but {len(skipped)} in a row cannot be read ('{path}' {reason}): check that "
            "the data is complete and where it should be."
        )


class SkipReport:
    """Count and name what was skipped.

    Each file is logged once, as a warning, up to a limit; all of them are kept with their reasons. Data sets run in
    worker processes, so what they skip travels in the batch (`batch["skipped"]`) and is entered here by the process
    that trains.

    Args:
        max_logged: How many files are logged by name, >= 0; the rest is only counted.

    Examples:
        >>> from diffusers_cfld.data import SkipReport
        >>> report = SkipReport(max_logged=0)
        >>> report.update([("a.jpg", "does not exist"), ("a.jpg", "does not exist")])
        >>> report.summary()
        "1 file was skipped, 2 times in all: 'a.jpg' (does not exist)."
    """

    def __init__(self, max_logged: int = 20) -> None:
        self.max_logged = max_logged
        self._reasons: dict[str, str] = {}
        self._times: dict[str, int] = {}

    def add(self, path: str, reason: str, times: int = 1) -> bool:
        """Enter a file.

        Args:
            path: The file, or the name that the data set has for it.
            reason: What is wrong with it, as the end of a sentence that begins with the file.
            times: How often it was met, >= 1.

        Returns:
            Whether it was not known before.
        """
        self._times[path] = self._times.get(path, 0) + times
        if path in self._reasons:
            return False
        self._reasons[path] = reason
        if len(self) <= self.max_logged:
            logger.warning("Skipping '%s': %s.", path, reason)
        elif len(self) == self.max_logged + 1 and self.max_logged:
            logger.warning("More than %d files are skipped; the others are not named here.", self.max_logged)
        return True

    def update(self, skipped: Iterable[Sequence[str]]) -> None:
        """Enter what a batch carries.

        Args:
            skipped: Pairs (path, reason), `batch["skipped"]`.
        """
        for path, reason in skipped:
            self.add(path, reason)

    def merge(self, state: Mapping[str, Any]) -> None:
        """Enter the report of another process or of an earlier part of the run.

        Args:
            state: Its `state_dict()`.
        """
        for path, entry in state["files"].items():
            self.add(path, entry["reason"], entry["times"])

    @property
    def num_times(self) -> int:
        """How often a file was skipped, repetitions included."""
        return sum(self._times.values())

    def reason(self, path: str) -> str:
        """Tell why a file was skipped.

        Args:
            path: The file.

        Returns:
            The reason it was first entered with.

        Raises:
            KeyError: It was not skipped.
        """
        return self._reasons[path]

    def summary(self, max_named: int = 5) -> str:
        """Say in one paragraph what was skipped.

        Args:
            max_named: How many files are named, the first ones.

        Returns:
            A sentence.
        """
        if not self._reasons:
            return "No file was skipped."
        count = f"{len(self)} files were" if len(self) > 1 else "1 file was"
        times = f", {self.num_times} times in all" if self.num_times > len(self) else ""
        named = [f"'{path}' ({reason})" for path, reason in list(self._reasons.items())[:max_named]]
        rest = len(self) - len(named)
        listing = ", ".join(named) + (f" and {rest} more" if rest and named else "")
        return f"{count} skipped{times}" + (f": {listing}." if listing else ".")

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, fit for JSON and for `accelerator.register_for_checkpointing`.

        Returns:
            `{"files": {path: {"reason": ..., "times": ...}}}`.
        """
        return {
            "files": {path: {"reason": reason, "times": self._times[path]} for path, reason in self._reasons.items()}
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the place of a saved report; what was entered before is forgotten and nothing is logged.

        Args:
            state: From `state_dict()`.
        """
        files = state["files"]
        self._reasons = {path: entry["reason"] for path, entry in files.items()}
        self._times = {path: entry["times"] for path, entry in files.items()}

    def __contains__(self, path: object) -> bool:
        return path in self._reasons

    def __iter__(self) -> Iterator[str]:
        return iter(self._reasons)

    def __len__(self) -> int:
        return len(self._reasons)

    def __repr__(self) -> str:
        return f"SkipReport({self.summary()})"
