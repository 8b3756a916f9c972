"""The page of a comparison: one file that loads nothing, shows texts as texts, and browses 5,000 items in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tutelage.core.records import Example
from tutelage.evaluate.compare import Compared, compare
from tutelage.evaluate.suite import Result
from tutelage.evaluate.systems import System, system
from tutelage.report.comparison import comparison_page, lines_of

EVIL = '</script><script>document.title="taken"</script><img src=x onerror=alert(1)> & "quoted" \u2028'


def examined(name: str, count: int, right: Any, *, cells: str = "AB", said: str = "an answer") -> System:
    rows = [
        Result(
            target=name, target_id=f"model:{name}", suite="town_facts", cell=cells[place % len(cells)],
            item=f"fact-{place}", cluster=str(place), kind="generate", metric="exact", value=float(right(place)),
            outcome="answered", output=f"{said} {place}", slices={"asks": "street"},
        )
        for place in range(count)
    ]  # fmt: skip
    items = {row.item: Example.ask(f"What is fact {row.item}? {EVIL}", target="the <b>truth</b>") for row in rows}
    return system(name, f"evaluation:{'ab' * 32}#{name}", rows, items)


def compared(count: int = 60, names: str = "old new") -> Compared:
    sides = [
        examined(name, count, lambda place, s=shift: (place * 7 + s) % 10 < 5 + s, said=EVIL if shift else "an answer")
        for shift, name in enumerate(names.split())
    ]
    return compare(sides, [(0, place) for place in range(1, len(sides))], margin=0.02, resamples=100)


class Opened:
    """A page from file://, with everything that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page, self.asked, self.errors = self.context.new_page(), [], []  # type: Any, list[str], list[str]
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(dialog.message))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def test_the_page_is_one_file_under_a_strict_policy() -> None:
    html = comparison_page(compared())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy and "default-src &#39;none&#39;" in policy[1] and "unsafe" not in policy[1]
    assert policy[1].count("sha256-") == 2
    assert not re.search(r"""(src|href|action)=["']?(https?:)?//""", html) and "style=" not in html
    assert html.count("<script") == 2 and "onerror=alert(1)&gt;" not in html
    assert comparison_page(compared()) == html
    for said in ("detects", "with Holm", "no worse", "fixed", "cluster-robust t", "town facts A"):
        assert said in html, said


def graded(name: str, kind: str, metric: str, values: list[float], said: list[dict[str, float]]) -> System:
    rows = [
        Result(target=name, suite=kind, item=f"{kind}{n}", cluster=f"{n}", kind=kind, metric=metric, value=value,
               outcome="answered", scores=scores)
        for n, (value, scores) in enumerate(zip(values, said, strict=True))
    ]  # fmt: skip
    return system(name, f"evaluation:{'ab' * 32}#{name}", rows, {})


def test_colours_are_the_metrics_own() -> None:
    """An attack that failed is good, bits per byte are neither right nor wrong, what only describes has no verdict."""
    sides = [
        graded(name, "goal", "attack_success", [value] * 20, [{}] * 20) for name, value in (("old", 1.0), ("new", 0.0))
    ]
    found = comparison_page(compare(sides, [(0, 1)]))
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', found, re.DOTALL)[1])
    assert [[each[4] for each in item[6]] for item in data["items"]] == [[False, True]] * 20
    assert "said[4]" in found and "said[0] ===" not in found
    bits = [
        graded(n, "perplexity", "bits_per_byte", [v] * 20, [{"bits": 8 * v, "bytes": 8.0}] * 20)
        for n, v in (("old", 1.0), ("new", 0.7))
    ]
    data = json.loads(re.search(r'id="data">(.*?)</script>', comparison_page(compare(bits, [(0, 1)])), re.DOTALL)[1])
    assert {each[4] for item in data["items"] for each in item[6]} == {None}
    said = [
        graded(
            name, "summarise", "rouge_l", [0.5] * 20, [{"rouge_l": 0.5, "copied": share + n / 100} for n in range(20)]
        )
        for name, share in (("old", 0.1), ("new", 0.6))
    ]
    page = comparison_page(compare(said, [(0, 1)], margin=0.02))
    assert "copied, it only describes" in page and "no verdict" in page and 'class="dot none"' not in page


def test_counts_are_said_as_people_say_them() -> None:
    sides = [
        graded(name, "generate", "exact", [0.0] * 9 + [last], [{}] * 10) for name, last in (("old", 0.0), ("new", 1.0))
    ]
    lines = list(lines_of(compare(sides, [(0, 1)])))
    assert "1 comparison: 0 better, 0 worse, 1 without a shown difference. 1 answer fixed, 0 broken." in lines[-1]
    assert lines[0].endswith("p adjusted by Holm over its test alone")
    assert "over all 2 headline tests told here" in next(iter(lines_of(compared())))


def test_the_terminal_says_what_can_be_detected() -> None:
    found = compared()
    lines = list(lines_of(found))
    assert sum("detects ≥" in line for line in lines) == len([row for row in found.rows if row.headline]) == 2
    assert "points at 80% power" in lines[-1]


def test_answers_are_browsed_as_text_in_a_real_browser(tmp_path: Path, browser: Any) -> None:
    path = tmp_path / "compare.html"
    path.write_text(comparison_page(compared()), encoding="utf-8")
    for scheme, width in (("light", 1280), ("dark", 390)):
        with Opened(browser, path, color_scheme=scheme, viewport={"width": width, "height": 800}) as opened:
            page = opened.page
            assert page.title() == "old → new", "a script in an answer is shown, not run"
            first = page.locator("#list > li").first
            assert EVIL.split(" &")[0] in first.inner_text() and "the <b>truth</b>" in first.inner_text()
            assert page.locator("#list img, #list b, #list script").count() == 0
            changed = int(page.locator("#count").inner_text().split()[0])
            assert changed == sum(item.changes[0] in ("fixed", "broken") for item in compared().items)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert opened.asked == [path.as_uri()] and opened.errors == []
            page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; "
                          "document.body.append(s); }")  # fmt: skip
            assert page.evaluate("window.ran") is None, "the policy lets no other script run"


def test_filters_and_keys_work_on_five_thousand_items(tmp_path: Path, browser: Any) -> None:
    found = compared(5000, "old new newer")
    path = tmp_path / "compare.html"
    path.write_text(comparison_page(found), encoding="utf-8")
    assert path.stat().st_size < 12_000_000
    with Opened(browser, path, viewport={"width": 1280, "height": 900}) as opened:
        page = opened.page
        assert page.locator("#list > li").count() == 20 and "page 1 of" in page.locator("#where").inner_text()
        page.keyboard.press("n")
        assert "page 2 of" in page.locator("#where").inner_text()
        page.keyboard.press("j")
        page.keyboard.press("j")
        assert page.evaluate("[...document.querySelectorAll('#list > li')].indexOf(document.activeElement)") == 1
        page.keyboard.press("/")
        page.keyboard.type("fact-4321?")
        page.locator("[name=change]").select_option("")
        page.wait_for_function("document.querySelectorAll('#list > li').length === 1")
        assert page.locator("#list code").inner_text() == "fact-4321"
        page.locator("[name=text]").fill("")
        page.locator("[name=pair]").select_option("1")
        page.locator("[name=change]").select_option("broken")
        page.locator("[name=suite]").select_option("town_facts|B")
        wanted = sum(item.changes[1] == "broken" and item.cell == "B" for item in found.items)
        page.wait_for_function(f"document.getElementById('count').textContent.startsWith('{wanted} ')")
        page.locator("#changed button").first.click()
        assert page.locator("[name=suite]").input_value() == "town_facts|A"
        assert opened.errors == []


def test_three_systems_have_ranks_and_curves() -> None:
    html = comparison_page(compared(60, "old new newer"))
    assert '<section id="ranks"' in html and '<section id="curves"' in html and "mean rank" in html
    assert '<section id="ranks"' not in comparison_page(compared())


def test_texts_that_are_gone_are_said_to_be() -> None:
    sides = [examined("old", 30, lambda place: place % 2), examined("new", 30, lambda place: place % 3 == 0)]
    bare = [System(each.name, each.source, each.target_id, each.rows) for each in sides]
    html = comparison_page(compare(bare, [(0, 1)], resamples=50))
    assert "no longer in this root" in html
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert data and json.loads(data[1])["items"][0][3] is None
