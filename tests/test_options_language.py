"""The option language against EMAN2's measured answers, and its binding to signatures."""

import dataclasses
import functools
import math
from typing import Any

import equinox as eqx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sptjax import options
from sptjax._errors import InputError
from sptjax.options import Spec, bind, parse

# ---------------------------------------------------------------- parse


def parsed(text) -> Spec:
    spec = parse(text)
    assert spec is not None
    return spec


# What EMAN2's parsemodopt returns, measured by running it.
EMAN2_ANSWERS = {
    "normalize": ("normalize", {}),
    "normalize:": ("normalize", {}),
    "a:k=1e3": ("a", {"k": 1000.0}),
    "a:k=1_0": ("a", {"k": 10}),
    "a:k=.5": ("a", {"k": 0.5}),
    "a:k=0x10": ("a", {"k": "0x10"}),
    "a:k=2,3,4": ("a", {"k": "2,3,4"}),
    "a:k=TRUE:j=False": ("a", {"k": 1, "j": 0}),
    'a:k="12"': ("a", {"k": "12"}),
    'a:k=""': ("a", {"k": '""'}),
    "a:k=": ("a", {"k": ""}),
    "a:k=1:k=2": ("a", {"k": 2}),
    "a:Low_fall_off=1:low_fall_off=2": ("a", {"Low_fall_off": 1, "low_fall_off": 2}),
    "rotate_translate_3d:search=8:delta=12:dphi=12": (
        "rotate_translate_3d",
        {"search": 8, "delta": 12, "dphi": 12},
    ),
}


@pytest.mark.parametrize("text", EMAN2_ANSWERS)
def test_parse_types_values_as_eman2_does(text):
    name, params = EMAN2_ANSWERS[text]
    spec = parsed(text)
    assert spec == Spec(name, params)
    assert [type(v) for v in spec.params.values()] == [type(v) for v in params.values()]


def test_nan_is_a_float():
    assert math.isnan(float(parsed("a:k=nan").params["k"]))


@pytest.mark.parametrize("text", [None, "", "none", "None", "NONE", "none:"])
def test_off(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("a:b", "'b'"),
        ("a:b=c=d", "'b=c=d'"),
        ("a:b=1:", "''"),
        ("a::b=1", "''"),
        ("a:=1", "'=1'"),
        (":b=1", "''"),
        ("search=8:delta=12", "'search=8'"),
        ("none:b=1", "'none'"),
    ],
)
def test_malformed_text_shows_the_piece(text, piece):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert piece in str(caught.value)


# ---------------------------------------------------------------- format

words = st.text(st.characters(exclude_characters=":=", exclude_categories=["Cs"]), min_size=1)
names = words.filter(lambda word: word.lower() != "none")
tricky = st.sampled_from(["", "1", "-1.5", "1e3", "nan", "true", "False", '"', '""', '"a"', " 2 "])
values = st.one_of(st.integers(), st.floats(allow_nan=False), words, tricky)
specs = st.builds(Spec, names, st.dictionaries(words, values, max_size=4))


@given(specs)
def test_format_is_the_inverse_of_parse(spec):
    again = parsed(options.format(spec))
    assert again == spec
    assert list(again.params) == list(spec.params)
    assert [type(v) for v in again.params.values()] == [type(v) for v in spec.params.values()]


@given(st.text(st.sampled_from('ab:="1.e none')))
def test_whatever_parses_has_one_normal_form(text):
    try:
        spec = parse(text)
    except InputError:
        return
    assert parse(options.format(spec)) == spec


@pytest.mark.parametrize(
    "spec",
    [Spec("a", {"k": "x:y"}), Spec("a", {"k=": 1}), Spec("a:b"), Spec(""), Spec("None")],
)
def test_format_refuses_what_cannot_be_spelt(spec):
    with pytest.raises(InputError):
        options.format(spec)


def test_format_of_switches():
    assert options.format(None) == "none"
    assert options.format(Spec("a", {"k": True})) == "a:k=1"


# ---------------------------------------------------------------- bind


@dataclasses.dataclass(frozen=True)
class Grid:
    delta: float
    search: int = 8
    refine: bool = True
    sym: str | None = None
    start: tuple[float, ...] = ()

    def __post_init__(self):
        if self.delta <= 0:
            raise InputError("delta must be positive.")


class Tree(eqx.Module):
    maxres: float = eqx.field(static=True, default=20.0)


def gauss(volume=None, *, cutoff_abs: float, name: int | str = "x"):
    return ("gauss", volume, cutoff_abs, name)


def flat():
    return "flat"


REGISTRY = {
    "grid": Grid,
    "tree": Tree,
    "gauss": gauss,
    "preset": functools.partial(gauss, cutoff_abs=0.25),
    "flat": flat,
}


def bound(text) -> Any:
    return bind(parse(text), REGISTRY, "--align")


def test_values_reach_the_constructor_with_the_asked_types():
    assert bound("grid:delta=12") == Grid(12.0)
    grid = bound("grid:search=4.0:delta=12:refine=0:sym=c3")
    assert grid == Grid(12.0, 4, False, "c3")
    assert [type(v) for v in (grid.delta, grid.search, grid.refine)] == [float, int, bool]
    assert bound("grid:delta=1:refine=true").refine is True
    assert bound("grid:delta=1:sym=None").sym is None
    assert bound("tree:maxres=15").maxres == 15.0
    assert bound("gauss:cutoff_abs=.1") == ("gauss", None, 0.1, "x")
    assert bound("preset:name=3") == ("gauss", None, 0.25, 3)
    assert bound('preset:name="3"') == ("gauss", None, 0.25, "3")
    assert bound("flat") == "flat"
    assert bound("none") is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("gird:delta=1", ["no 'gird'", "mean 'grid'?", "flat, gauss, grid, preset, tree"]),
        ("zzz", ["no 'zzz'; allowed names"]),
        ("grid:serch=8", ["grid has no key 'serch'", "mean 'search'?", "delta, refine, search"]),
        ("grid:delta=1:start=2", ["no key 'start'"]),  # a tuple cannot be spelt
        ("gauss:volume=1:cutoff_abs=1", ["no key 'volume'"]),  # not keyword-only
        ("flat:k=1", ["no key 'k'; allowed keys: none"]),
        ("grid", ["grid needs 'delta'", "allowed keys: delta"]),
        ("grid:delta=wide", ["'delta' wants a number, not 'wide'"]),
        ("grid:delta=1:search=2.5", ["'search' wants a whole number, not 2.5"]),
        ("grid:delta=1:search=inf", ["'search' wants a whole number, not inf"]),
        ("grid:delta=1:refine=2", ["'refine' wants true or false, not 2"]),
        ("grid:delta=1:refine=yes", ["'refine' wants true or false, not 'yes'"]),
        ("grid:delta=1:sym=3", ["'sym' wants a word or none, not 3", 'quote it: "3"']),
        ("grid:delta=none", ["'delta' wants a number, not 'none'"]),
        ("grid:delta=-1", ["grid: delta must be positive."]),
    ],
)
def test_bind_says_what_is_wrong(text, parts):
    with pytest.raises(InputError) as caught:
        bound(text)
    message = str(caught.value)
    assert message.startswith("--align: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_defect_of_the_constructor_is_not_called_bad_input():
    def broken(*, k: int = 0):
        return 1 // k

    with pytest.raises(ZeroDivisionError):
        bind(Spec("broken"), {"broken": broken}, "--align")


@given(st.integers(-(2**60), 2**60))
def test_whole_floats_and_ints_are_one_where_an_int_is_asked(number):
    grid = bind(Spec("grid", {"delta": 1, "search": float(number)}), REGISTRY, "--x")
    assert grid.search == int(float(number))
    assert type(grid.search) is int
