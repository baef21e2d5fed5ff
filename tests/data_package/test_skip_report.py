"""Counting, naming and passing on what was skipped."""

import doctest
import json
import logging

from diffusers_cfld.data import SkipReport, UnreadableDataError, skip_report


def test_files_are_counted_and_the_first_twenty_named(caplog):
    report = SkipReport()
    with caplog.at_level(logging.WARNING, "diffusers_cfld"):
        report.add("0", "is empty")
        report.add("0", "is something else now")
        report.update((str(number), "is empty") for number in range(1, 23))
    messages = [record.getMessage() for record in caplog.records]
    assert messages[:20] == [f"Skipping '{number}': is empty." for number in range(20)]
    assert messages[20:] == ["More than 20 files were skipped; the others are not logged."]
    assert len(report) == 23
    assert report.files["0"] == {"reason": "is empty", "times": 2}


def test_the_summary_is_one_sentence():
    report = SkipReport()
    assert report.summary() == "No file was skipped."
    report.update((name, "is empty") for name in "abcdefab")
    named = ", ".join(f"'{name}' (is empty)" for name in "abcde")
    assert report.summary() == f"6 files were skipped, 8 times in all: {named} and 1 more."
    assert doctest.testmod(skip_report).failed == 0


def test_the_state_survives_json(caplog):
    report = SkipReport()
    report.update([("a", "is empty"), ("a", "is empty"), ("b", "does not exist")])
    state = json.loads(json.dumps(report.state_dict()))
    loaded = SkipReport()
    loaded.add("c", "was there before")
    caplog.clear()
    loaded.load_state_dict(state)
    assert not caplog.records
    assert loaded.state_dict() == report.state_dict()


def test_the_error_of_a_worker_is_reduced_to_its_sentence():
    error = UnreadableDataError.after([("a.jpg", "does not exist"), ("b.jpg", "is empty")])
    wrapped = f"Caught it in worker 0.\nTraceback ...\ndiffusers_cfld.data.UnreadableDataError: {error}\n"
    assert str(UnreadableDataError(wrapped)) == str(error)
    assert "2 files in a row cannot be used; the first is 'a.jpg', which does not exist" in str(error)
