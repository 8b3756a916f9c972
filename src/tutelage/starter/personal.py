"""Personal data to plant, and what only looks like it. Numbers come from ranges set aside for examples."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tutelage.starter.material import pick

COUNTS = {"email": 160, "phone": 140, "address": 120, "card": 70, "iban": 70, "ip": 40}
"""Spans of each type in a town of full size, and as many look-alikes."""


@dataclass(frozen=True)
class Planted:
    """A span of a document that is personal data (or only looks like it), known when it was written."""

    document: str
    start: int
    end: int
    type: str
    value: str


def _digits(rng: random.Random, count: int) -> str:
    return "".join(str(rng.randrange(10)) for _ in range(count))


def _luhn_digit(digits: str) -> int:
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char) * (2 - place % 2)
        total += value - 9 if value > 9 else value
    return -total % 10


def _grouped(digits: str, sep: str = " ") -> str:
    return sep.join(digits[place : place + 4] for place in range(0, len(digits), 4))


def personal(rng: random.Random, kind: str, name: str, street: str) -> str:
    """A made-up value of a type of personal data that passes its check digits."""
    if kind == "email":
        user = pick(
            rng,
            (name.lower(), f"{name.lower()}.{rng.randrange(10, 99)}", f"{name[0].lower()}.{street.split()[0].lower()}"),
        )
        return f"{user}@example.{pick(rng, ('org', 'com', 'net'))}"
    if kind == "phone":
        return pick(
            rng,
            (
                f"+44 7700 900{_digits(rng, 3)}",
                f"+44 20 7946 0{_digits(rng, 3)}",
                f"(555) 010-{_digits(rng, 4)}",
                f"555-010-{_digits(rng, 4)}",
            ),
        )
    if kind == "address":
        return f"{rng.randrange(1, 99)} {street}"
    if kind == "card":
        body = "400000" + _digits(rng, 9)
        return _grouped(body + str(_luhn_digit(body)), pick(rng, (" ", "-", "")) or " ")
    if kind == "iban":
        account = "0000000" + _digits(rng, 11)
        check = 98 - int(account + "131400") % 97  # D = 13, E = 14
        return _grouped(f"DE{check:02d}{account}")
    return pick(rng, ("192.0.2.", "198.51.100.", "203.0.113.")) + str(rng.randrange(1, 255))


def alike(rng: random.Random, kind: str, sentence: str, name: str) -> str:
    """A value that looks like a type of personal data and is none, fitting the sentence it will stand in."""
    if kind == "email":
        return f"{name.lower()}_{rng.randrange(10, 99)}"
    if kind == "phone":
        if "day on" in sentence:
            return f"{rng.randrange(1, 28):02d}.{rng.randrange(1, 13):02d}.19{_digits(rng, 2)}"
        return pick(rng, (f"{_digits(rng, 4)}-{_digits(rng, 3)}-{_digits(rng, 2)}", _digits(rng, 7)))
    if kind == "card":
        body = "400000" + _digits(rng, 9)
        return _grouped(body + str((_luhn_digit(body) + rng.randrange(1, 10)) % 10))
    if kind == "iban":
        account = "0000000" + _digits(rng, 11)
        check = (98 - int(account + "131400") % 97 + rng.randrange(1, 60)) % 97
        return _grouped(f"DE{check:02d}{account}")
    return f"{rng.randrange(1, 20)}.{rng.randrange(300, 999)}.{rng.randrange(10)}.{rng.randrange(10)}"


def broken(rng: random.Random, text: str) -> str:
    """A text as bad machines leave it: wrong encoding, lost spaces, stuck keys, cut and repeated lines, symbols."""
    how = rng.randrange(6)
    if how == 0:
        return text.replace("e", "Ã©").replace("o", "Ã¶").replace("'", "â€™").replace(" a", " Â a")
    if how == 1:
        return "".join(char for char in text if char != " ")[: len(text) // 2]
    if how == 2:
        line = text[: rng.randrange(12, 30)]
        return "\n".join([line] * (len(text) // len(line)))
    if how == 3:
        return "".join(pick(rng, "#$%&*+=|~^<>{}[]\\/0123456789;:") if rng.random() < 0.6 else char for char in text)
    if how == 4:
        letters = list(text)
        rng.shuffle(letters)
        return "".join(letters)
    return (
        "".join(char * (rng.randrange(3, 7) if rng.random() < 0.3 else 1) for char in text)[: len(text)]
        + "\ufffd\ufffd"
    )
