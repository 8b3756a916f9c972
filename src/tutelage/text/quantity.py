"""Numbers as people and models write them, with their units: 1,200; 1.200,5; 3/4; 2 1/2; 1e3; 45 %; $3.50; 2 km."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

_DIGITS = r"\d+(?:[.,'\u00a0\u202f]\d{3})+(?:[.,]\d+)?|\d+[.,]\d+|\d+|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+\u2212]?)\s?(?P<money>[$€£¥₹])?\s?(?P<whole>\d+)\s(?P<top>\d+)/(?P<below>\d+)(?![\d/])"
    rf"|(?P<sign2>[-+\u2212]?)\s?(?P<money2>[$€£¥₹])?\s?(?P<digits>{_DIGITS})(?P<power>[eE][-+]?\d+)?"
    r"(?:\s?/\s?(?P<under>\d+)(?![\d/]))?"
)
_UNIT = re.compile(r"\s?(%|°[CF]?|[$€£¥₹]|[^\W\d_]+(?:/[^\W\d_]+)?[²³]?)")

# name -> (base unit, how many of it); a factor only where conversion is exact
_UNITS: dict[str, tuple[str, Fraction]] = {}
_MEASURES: dict[str, dict[str, str]] = {
    "m": {"m meter metre meters metres": "1", "km kilometer kilometre kilometers kilometres": "1000",
          "cm centimeter centimetre centimeters centimetres": "1/100", "mm millimeter millimeters": "1/1000"},
    "g": {"g gram grams gramm": "1", "kg kilo kilos kilogram kilograms": "1000", "mg milligram milligrams": "1/1000"},
    "l": {"l liter litre liters litres": "1", "ml milliliter millilitre milliliters": "1/1000"},
    "s": {"s sec secs second seconds": "1", "min mins minute minutes": "60", "h hr hrs hour hours": "3600",
          "day days": "86400", "week weeks": "604800"},
    "%": {"% percent": "1"}, "$": {"$ dollar dollars usd": "1", "cent cents": "1/100"}, "€": {"€ euro euros eur": "1"},
    "£": {"£ pound pounds gbp": "1"}, "¥": {"¥ yen jpy": "1"}, "₹": {"₹ rupee rupees inr": "1"},
    "°C": {"°C celsius": "1"}, "°F": {"°F fahrenheit": "1"},
}  # fmt: skip
for _base, _names in _MEASURES.items():
    for _spelled, _factor in _names.items():
        for _name in _spelled.split():
            _UNITS[_name] = (_base, Fraction(_factor))


class Quantity(NamedTuple):
    """A number with the unit that stands beside it; empty where none of those known here does."""

    number: Fraction
    unit: str = ""


def _read(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > 100:  # no quantity, and slow to reckon with
        return None
    minus = (match["sign"] or match["sign2"] or "") in ("-", "\u2212")
    if match["whole"]:
        if not int(match["below"]):
            return None
        found = int(match["whole"]) + Fraction(int(match["top"]), int(match["below"]))
    else:
        if len(match["power"] or "") > 5:
            return None
        found = _plain(match["digits"]) * Fraction(f"1{match['power'] or 'e0'}")
        if match["under"]:
            if not int(match["under"]):
                return None
            found /= int(match["under"])
    return -found if minus else found


def _plain(digits: str) -> Fraction:
    """Digits with marks: one mark that groups by threes groups (1,200 and 1.200.000); where two kinds stand, or what
    follows is not three digits, the last is the decimal mark. A lone point before three digits is decimal (3.142)."""
    marks = [each for each in digits if not each.isdigit()]
    if not marks:
        return Fraction(digits)
    last = marks[-1]
    head, _, tail = digits.rpartition(last)
    grouped = len(tail) == 3 and len(set(marks)) == 1 and last not in "." and head != "0"
    grouped = grouped or (len(set(marks)) == 1 and len(marks) > 1)
    bare = re.sub(r"\D", "", head)
    return Fraction(bare + tail) if grouped else Fraction(f"{bare or 0}.{tail}")


def quantities(text: str) -> list[Quantity]:
    """The numbers of a text, in its order, each with its unit."""
    found = []
    for match in _NUMBER.finditer(text):
        before = text[match.start() - 1] if match.start() else " "
        number = _read(match)
        if number is None:
            continue
        if before.isalnum() and (match["sign"] or match["sign2"]):
            number = abs(number)  # "16-3": a subtraction, not a negative number
        money = match["money"] or match["money2"]
        after = _UNIT.match(text, match.end())
        unit = money or (after[1] if after else "")
        found.append(Quantity(number, unit if _known(unit) else ""))
    return found


def _known(unit: str) -> tuple[str, Fraction] | None:
    return _UNITS.get(unit) or _UNITS.get(unit.lower())


def number_of(text: str) -> Fraction | None:
    """The number that a text is, perhaps with a unit; None where it is anything else."""
    found = quantities(text)
    rest = _NUMBER.sub("", text, count=1).strip().rstrip(".")
    return found[0].number if len(found) == 1 and len(rest.split()) <= 1 else None


def same(said: Quantity, target: Quantity, tolerance: float = 0.0) -> tuple[bool, bool]:
    """(whether the numbers are equal, whether the units agree). Units of one measure are converted (2 km = 2000 m); a
    unit that was left out agrees with any."""
    number = said.number
    mine, wanted = _known(said.unit), _known(target.unit)
    units = not mine or not wanted or mine[0] == wanted[0]
    if mine and wanted and mine[0] == wanted[0]:
        number = number * mine[1] / wanted[1]
    return abs(number - target.number) <= abs(target.number) * Fraction(tolerance), units


def last(found: Sequence[Quantity]) -> Quantity | None:
    """The last of some quantities."""
    return found[-1] if found else None
