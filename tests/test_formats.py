"""docs/formats.md is what the models say, and the models say what the files hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[1]
DOCUMENT = HOME / "docs" / "formats.md"


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(HOME / "tools" / "formats.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}Run: python tools/formats.py"


@pytest.mark.parametrize(
    "title",
    ["Recipe", "Manifest", "Results", "Policy", "Scan output", "Events", "Answers", "Release policy"],
)
def test_every_format_of_the_design_stands_there(title: str) -> None:
    assert f"\n## {title}\n" in DOCUMENT.read_text(encoding="utf-8")


def test_every_schema_is_one() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 30
    for block in blocks:
        schema = json.loads(block)
        assert schema.get("type") == "object" or "$ref" in schema
        for name in re.findall(r'"\$ref": "#/\$defs/([^"]+)"', block):
            assert name in schema["$defs"]
