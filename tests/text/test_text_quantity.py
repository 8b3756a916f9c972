"""Numbers are read as they are written, in several countries, with units."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.text.quantity import number_of, quantities, same


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("1,200", 1200, ""),
        ("1.200,5", Fraction(2401, 2), ""),
        ("1.200.000", 1200000, ""),
        ("2,000.50", Fraction(4001, 2), ""),
        ("3.142", Fraction(3142, 1000), ""),
        ("0,5", Fraction(1, 2), ""),
        ("3/4", Fraction(3, 4), ""),
        ("2 1/2", Fraction(5, 2), ""),
        ("1e3", 1000, ""),
        ("45 %", 45, "%"),
        ("$3.50", Fraction(7, 2), "$"),
        ("2 km", 2, "km"),
        ("-5", -5, ""),
        ("\u22125", -5, ""),
        ("1'000", 1000, ""),
        ("5.", 5, ""),
    ],
)
def test_a_number_as_it_is_written(text, number, unit):
    assert [(each.number, each.unit) for each in quantities(text)] == [(number, unit)]
    assert number_of(text) == number


def test_what_is_no_number():
    assert [number_of(each) for each in ("", "a", "3 and 4", "about 12 apples", "7/0")] == [None] * 5
    assert [each.number for each in quantities("16-3=13")] == [16, 3, 13], "a subtraction is no negative number"


def test_units_are_converted_and_must_agree():
    (two,), (metres,), (litres,) = quantities("2 km"), quantities("2000 m"), quantities("2 l")
    assert same(two, metres) == (True, True)
    assert same(two, litres) == (True, False)
    assert same(quantities("2")[0], two) == (True, True), "a unit left out agrees with any"
    assert same(quantities("2.01")[0], quantities("2")[0], 0.01) == (True, True)
    assert same(quantities("2.03")[0], quantities("2")[0], 0.01) == (False, True)


@given(st.text(max_size=60))
def test_any_text_can_be_read(text):
    quantities(text)
    number_of(text)


def test_no_number_is_too_long():
    assert quantities("9" * 6000) == [] and quantities("1e999999") == []
