"""Language by script, small words and letters; undetermined rather than wrong."""

import pytest

from tutelage.text.language import identify


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "Two young men are outside near many bushes."),
        ("de", "Zwei junge Männer sind im Freien in der Nähe vieler Büsche."),
        ("fr", "Deux jeunes hommes blancs sont dehors près de buissons."),
        ("es", "No sé por qué la niña está en la casa."),
        ("cs", "Dva mladí muži jsou venku a něco si říkají."),
        ("vi", "Tôi không biết bạn muốn gì."),
        ("zh", "你好，世界"),
        ("ja", "これは本です"),
        ("ru", "Привет, как дела?"),
        ("ar", "مرحبا بالعالم"),
    ],
)
def test_known(code: str, text: str):
    assert identify(text).code == code


@pytest.mark.parametrize("text", ["", "12 + 3", "ka velo mira sontu dar", "xyzzy", "Ttt grrh vlq"])
def test_undetermined(text: str):
    assert identify(text).code == "und"
