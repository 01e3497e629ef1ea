"""Lines know what they are: where they are written, in the log, in the report."""

import types

import numpy as np
import pytest

from sptjax import reporting
from sptjax._messages import Level, Message, about, level_of, logged, read, step, warning
from sptjax.generate import _maps


@pytest.mark.parametrize("text", ["", "warning", "note of a reader", "  two", "step 3", "é — Å"])
@pytest.mark.parametrize("make", [str, step, warning])
def test_a_line_comes_back_from_the_log(make, text):
    line = make(text)
    found = read(logged(line).removesuffix("\n"))
    assert (found, found.level) == (text, level_of(line))


def test_every_line_of_a_message_has_its_level():
    assert logged(warning("one\ntwo")) == "warning one\nwarning two\n"


def test_a_line_without_a_level_is_a_note():
    assert read("excluded: particle 3").level is Level.NOTE
    assert read("warnings are words").level is Level.NOTE  # no level ends here


def test_a_subject_keeps_the_level():
    assert about("a.hdf", "fine") == "a.hdf: fine"
    assert about("a.hdf", "fine").level is Level.NOTE
    assert about("a.hdf", warning("bad")).level is Level.WARNING


def test_text_is_text():
    line = warning("a")
    assert line == "a"
    assert isinstance(line, str)
    assert {line: 1}["a"] == 1


def test_excluded_particles_are_warnings():
    stack = types.SimpleNamespace(name="particle {}".format)
    said = reporting.excluded(np.array([0, 1, 2] + 30 * [1]), stack)
    assert len(said) == 21
    assert {level_of(line) for line in said} == {Level.WARNING}


def test_averages_no_better_than_particles_are_a_warning():
    good, bad = (_maps.verdict("tree", 20.0, last, 1) for last in (200.0, 20.0))
    assert (good, level_of(good)) == ("tree", Level.NOTE)
    assert "NOT CONVERGED" in bad
    assert level_of(bad) is Level.WARNING


def test_levels_are_told_from_each_other():
    widths = {len(f"{level:7s}") for level in Level}
    assert widths == {7}
    assert isinstance(step("x"), Message)
