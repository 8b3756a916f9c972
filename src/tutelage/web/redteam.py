"""What the red team found: the matrix, and every attempt that can be read, by family and outcome."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from tutelage.core.artifact import Artifact, Root
from tutelage.report import sections
from tutelage.web import render

READERS = ("lead", "safety", "red_teamer", "auditor")
PAGE = 50


def findings(artifact: Artifact) -> list[dict[str, Any]]:
    """The findings of a red-team artifact as plain rows."""
    return sections.rows(artifact.path / "findings.jsonl")


def text_of(finding: dict[str, Any], *names: str) -> str:
    """The first of these fields that holds something, as text; conversations become lines."""
    for name in names:
        value = finding.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, dict) and value.get("content"):
            return str(value["content"])
        if isinstance(value, list) and value:
            parts = [f"{m.get('role', '')}: {m.get('content', '')}" if isinstance(m, dict) else str(m) for m in value]
            return "\n".join(parts)
        if isinstance(value, dict) and value:
            return json.dumps(value, ensure_ascii=False, indent=1)
    return ""


def router(state: Any) -> APIRouter:
    """The page of this file; `state` has `root`."""
    routes = APIRouter(include_in_schema=False)
    root: Root = state.root

    @routes.get("/redteam")
    def redteam(
        request: Request, artifact: str = "", family: str = "", target: str = "", outcome: str = "", start: int = 0
    ) -> HTMLResponse:
        render.signed_in(request, *READERS)
        every = list(reversed(root.list("redteam")))
        chosen = next(
            (each for each in every if artifact and each.id.startswith(artifact)), every[0] if every else None
        )
        rows = findings(chosen) if chosen else []
        wanted = {"family": family, "target": target, "outcome": outcome}
        values = {name: sorted({str(row[name]) for row in rows if row.get(name) is not None}) for name in wanted}
        kept = [row for row in rows if all(not v or str(row.get(name)) == v for name, v in wanted.items())]
        start = max(0, min(start, len(kept)))
        shown = [
            {
                "family": str(row.get("family") or row.get("attack") or ""),
                "target": str(row.get("target") or ""),
                "rule": str(row.get("rule") or ""),
                "outcome": str(row.get("outcome") or ""),
                "guarded": row.get("guarded"),
                "prompt": text_of(row, "messages", "prompt", "attempt", "input"),
                "answer": text_of(row, "answer", "output", "response"),
            }
            for row in kept[start : start + PAGE]
        ]
        matrix = sections.redteam({"redteam": chosen}) if chosen else None
        return render.page(
            request,
            "redteam.html",
            artifacts=every,
            chosen=chosen,
            matrix=matrix or Markup(""),
            rows=shown,
            total=len(kept),
            start=start,
            size=PAGE,
            wanted=wanted,
            values=values,
        )

    return routes
