"""What the red team found: the matrix, and every attempt that can be read, by family and outcome."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from tutelage.core.artifact import Artifact, Root
from tutelage.report import sections, trials
from tutelage.web import render

READERS = ("lead", "safety", "red_teamer", "auditor")
PAGE = 50


def findings(artifact: Artifact) -> list[dict[str, str]]:
    """The successful attempts of a red-team artifact, one for each answer: who was asked, how, and what came back."""
    found = []
    for row in sections.rows(artifact.path / "findings.jsonl"):
        tags, messages = row.get("tags"), row.get("messages")
        if not isinstance(tags, dict) or not isinstance(messages, list) or tags.get("direction") == "input":
            continue  # the input row of a finding holds the same request without its answer
        said = [m for m in messages if isinstance(m, dict)]
        answer = str(said[-1].get("content", "")) if said and said[-1].get("role") == "assistant" else ""
        asked = [f"{m.get('role')}: {m.get('content', '')}" for m in (said[:-1] if answer else said)]
        found.append(
            {
                "attack": str(tags.get("attack") or ""),
                "target": str(tags.get("target") or ""),
                "rule": str(tags.get("rule") or ""),
                "guarded": "guarded" if tags.get("guarded") else "bare",
                "prompt": "\n".join(asked),
                "answer": answer,
            }
        )
    return found


def router(state: Any) -> APIRouter:
    """The page of this file; `state` has `root`."""
    routes = APIRouter(include_in_schema=False)
    root: Root = state.root

    @routes.get("/redteam")
    def redteam(
        request: Request, artifact: str = "", attack: str = "", target: str = "", rule: str = "", start: int = 0
    ) -> HTMLResponse:
        render.signed_in(request, *READERS)
        every = list(reversed(root.list("redteam")))
        chosen = next((e for e in every if artifact and e.id.startswith(artifact)), every[0] if every else None)
        rows = findings(chosen) if chosen else []
        wanted = {"attack": attack, "target": target, "rule": rule}
        values = {name: sorted({row[name] for row in rows if row[name]}) for name in wanted}
        kept = [row for row in rows if all(not value or row[name] == value for name, value in wanted.items())]
        start = max(0, min(start, len(kept)))
        matrix = trials.redteam({"redteam": chosen}) if chosen else None
        return render.page(
            request,
            "redteam.html",
            chosen=chosen,
            matrix=matrix or Markup(""),
            rows=kept[start : start + PAGE],
            total=len(kept),
            start=start,
            size=PAGE,
            wanted=wanted,
            values=values,
        )

    return routes
