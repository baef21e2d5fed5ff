"""Counting, naming and carrying over what was skipped."""

import doctest
import json
import logging
import pickle

import pytest

from diffusers_cfld.data import SkipReport, UnreadableDataError, skip_report


def test_files_are_counted_and_named_once(caplog):
    report = SkipReport(max_logged=2)
    with caplog.at_level(logging.WARNING, "diffusers_cfld"):
        assert report.add("a", "is empty")
        assert not report.add("a", "is something else now")
        report.update([["b", "does not exist"], ("c", "is empty"), ("d", "is empty")])
    assert [record.getMessage() for record in caplog.records] == [
        "Skipping 'a': is empty.",
        "Skipping 'b': does not exist.",
        "More than 2 files are skipped; the others are not named here.",
    ]
    assert (len(report), report.num_times, list(report)) == (4, 5, ["a", "b", "c", "d"])
    assert "a" in report
    assert "e" not in report
    assert report.reason("a") == "is empty"
    with pytest.raises(KeyError):
        report.reason("e")


def test_summary_is_one_paragraph():
    report = SkipReport(max_logged=0)
    assert report.summary() == "No file was skipped."
    report.update((name, "is empty") for name in "abcab")
    assert report.summary(2) == "3 files were skipped, 5 times in all: 'a' (is empty), 'b' (is empty) and 1 more."
    assert report.summary(0) == "3 files were skipped, 5 times in all."
    assert doctest.testmod(skip_report).failed == 0


def test_state_survives_json_and_merges_with_that_of_other_processes(caplog):
    report = SkipReport(max_logged=0)
    report.update([("a", "is empty"), ("a", "is empty"), ("b", "does not exist")])
    state = json.loads(json.dumps(report.state_dict()))
    with caplog.at_level(logging.WARNING, "diffusers_cfld"):
        loaded = SkipReport()
        loaded.add("c", "was there before")
        caplog.clear()
        loaded.load_state_dict(state)
        assert not caplog.records
    assert loaded.state_dict() == report.state_dict()
    loaded.merge(state)
    assert (len(loaded), loaded.num_times) == (2, 6)


def test_the_error_of_a_worker_is_reduced_to_its_sentence():
    error = UnreadableDataError.after([("a.jpg", "does not exist"), ("b.jpg", "is empty")])
    wrapped = f"Caught it in worker 0.\nTraceback ...\ndiffusers_cfld.data.UnreadableDataError: {error}\n"
    assert str(UnreadableDataError(wrapped)) == str(error)
    assert "2 in a row cannot be read ('a.jpg' does not exist)" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
