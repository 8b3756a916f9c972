"""Personal data is found in any dress; what only looks like it is left alone."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.text import pii

REAL = [
    ("email", "Ann.Lee@Example.org"),
    ("email", "JO_O'NEILL+shop@MAIL.EXAMPLE.CO.UK"),
    ("phone", "+44 20 7946 0958"),
    ("phone", "+49 (0)30 1234567"),
    ("phone", "(555) 123-4567"),
    ("phone", "020 7946 0958"),
    ("phone", "0049 30 1234567"),
    ("ip", "192.168.10.254"),
    ("ip", "2001:db8:85a3::8a2e:370:7334"),
    ("card", "4111 1111 1111 1111"),
    ("card", "5500-0000-0000-0004"),
    ("card", "378282246310005"),
    ("iban", "GB82 WEST 1234 5698 7654 32"),
    ("iban", "de89370400440532013000"),
    ("key", "AKIAIOSFODNN7EXAMPLE"),
    ("key", "ghp_0123456789abcdefghijklmnopqrstuvwxyz"),
    ("address", "12 Lamp Street"),
]
LOOK_ALIKES = [
    "the handle @annlee and icon@2x.png",
    "3 apples @ 1.50 each",
    "lib@1.2.3 was installed",
    "on 2024-01-05 or 05.01.2024 at 12:30:45",
    "order 555-123-4567 has left",
    "invoice number: 020 7946 0958",
    "version 1.2.3.4 of the firmware, v10.0.0.1 too",
    "the address 300.1.2.3 is none, 1.2.3.4.5 neither",
    "std::vector and a::b and 12:30:45",
    "card 4111 1111 1111 1112 fails the check",
    "1111111111111111 of the same",
    "GB82 WEST 1234 5698 7654 33 fails the check",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
    "pi is 3.14159265358979",
    "population 1 234 567 and 12,345,678",
    "the token was accepted and the password is simple",
]


@pytest.mark.parametrize(("type_", "value"), REAL)
def test_found_whole_in_a_sentence(type_: str, value: str):
    text = f"Please use {value}, thank you."
    assert [(span.type, text[span.start : span.end]) for span in pii.find(text)] == [(type_, value)]


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_look_alikes_are_left_alone(text: str):
    assert [(span.type, text[span.start : span.end]) for span in pii.find(text)] == []


def test_found_behind_invisible_characters():
    text = "mail an\u200bn@exam\u00adple.org now"
    (span,) = pii.find(text)
    assert pii.redact(text, [span]) == "mail [EMAIL] now"


def test_a_word_before_makes_a_short_number_a_phone():
    assert [span.type for span in pii.find("call me on 555-0134")] == ["phone"]
    assert pii.find("the box 555-0134") == []


def test_only_the_types_asked_for():
    text = "a@example.org from 10.1.2.3"
    assert [span.type for span in pii.find(text, ["ip"])] == ["ip"]
    with pytest.raises(ValueError, match="unknown types"):
        pii.find(text, ["e-mail"])


def test_redact_with_own_placeholder():
    text = "a@example.org and b@example.org"
    assert pii.redact(text, pii.find(text), lambda span: f"<{span.start}>") == "<0> and <18>"


@given(st.integers(0, 10**14))
def test_luhn_refuses_a_changed_digit(number: int):
    digits = str(number)
    good = next(str(check) for check in range(10) if pii.luhn(digits + str(check)))
    changed = str((int(good) + 1) % 10)
    assert not pii.luhn(digits + changed)


@given(st.text(max_size=80))
def test_spans_are_ordered_and_do_not_overlap(text: str):
    spans = pii.find(text)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(0 <= span.start < span.end <= len(text) for span in spans)


KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA7b0x9Qz1yT5kq3Xw\n" * 40 + "-----END RSA PRIVATE KEY-----"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJ" + "c3ViIjoiMTIzNDU2Nzg5MCIs" * 20 + ".SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJVadQssw5c"


@pytest.mark.parametrize("secret", [KEY, KEY[:700], KEY[:-40], KEY.replace("\n", "\\n"), TOKEN], ids=range(5))
def test_a_long_secret_is_covered_to_its_end(secret: str):
    text = f"It is\n{secret}\n. Keep it."
    assert pii.redact(text, pii.find(text)) == "It is\n[KEY]\n. Keep it."


def test_a_key_that_is_only_spoken_of_takes_nothing_with_it():
    text = "The file begins with -----BEGIN PRIVATE KEY----- and then come its lines."
    assert pii.redact(text, pii.find(text)) == "The file begins with [KEY] and then come its lines."


def test_what_looks_like_an_account_hides_none():
    text = "AT12 GB82 WEST 1234 5698 7654 32"
    assert pii.redact(text, pii.find(text)) == "AT12 [IBAN]"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("call 12 34 56 78 " * 11000, 11000),
        ("-----BEGIN PRIVATE KEY-----\n" * 7000, 7000),
        ("-eyJ" * 50000, 0),
        ("A-" * 100_000, 0),
        ("a" + "\u0301\u0316" * 100_000, 0),
        ("password " + " " * 200_000, 0),
    ],
    ids=["phones", "keys", "tokens", "streets", "marks", "blanks"],
)
def test_long_inputs_do_not_take_the_square_of_their_length(text: str, count: int):
    """Each took from seconds to many minutes; the limit is far from both."""
    assert len(pii.find(text)) == count


@given(st.text(alphabet="a1@. -+\n:Aе\u0301", max_size=60), st.integers(0, 60))
def test_what_is_settled_stays_whatever_follows(text: str, cut: int):
    first = pii.read(text[:cut], 0)
    rest = pii.read(text, first.until, last=True)
    assert [*first.spans, *rest.spans] == pii.read(text, 0, last=True).spans
