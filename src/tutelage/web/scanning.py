"""The guards by themselves: OpenAI's moderations, and scans of texts and conversations."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from tutelage.core.records import Message
from tutelage.store.keys import uuid7
from tutelage.web import auth, wire
from tutelage.web.admission import admitted
from tutelage.web.state import State

MOST_SCANS = 256
ROW = frozenset(("id", "text", "messages", "answer"))


async def moderate(state: State, request: Request) -> Response:
    """OpenAI's moderation, under OpenAI's names of categories as the taxonomy gives them.

    A category has the highest calibrated probability of ours that stand for it, and is flagged where a rule would fire.
    What of ours OpenAI has no name for goes by its own; what of OpenAI's no guard scores is left out, not called 0.
    """
    who = auth.asker(request, "guard")
    limits = state.tenant(who.tenant).limits
    body = await wire.read_json(request, limits.body_bytes)
    wire.only(body, frozenset(("model", "input")))
    wire.text(body, "model", 256)  # there is one
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 0 < len(texts) <= MOST_SCANS:
        wire.refuse(f"'input' must be a text or a list of 1 to {MOST_SCANS} texts", "input")
    texts = [_text(each, f"input[{index}]") for index, each in enumerate(texts)]
    total = sum(map(len, texts))
    if total > limits.characters:
        wire.refuse(f"'input' has {total} characters, {limits.characters} are allowed", "input")
    results = []
    with state.lease() as pipeline, admitted(state, who.tenant, wire.tokens(total)):
        for text in texts:
            message = (Message(role="user", content=text),)
            found = await pipeline.examine(message, surface="moderations", tenant=who.tenant)
            fired = pipeline.policy.fired(found.input.decision, who.tenant)
            scores: dict[str, float] = {}
            flagged: dict[str, bool] = {}
            for own, score in found.scores.items():
                for name in pipeline.policy.taxonomy.categories[own].openai or (own,):
                    scores[name] = max(score, scores.get(name, 0.0))
                    flagged[name] = flagged.get(name, False) or own in fired
            results.append(
                {
                    "flagged": found.action != "allow",
                    "categories": flagged,
                    "category_scores": scores,
                    "category_applied_input_types": {name: ["text"] for name in scores},
                }
            )
    return JSONResponse({"id": f"modr-{uuid7()}", "model": "tutelage", "results": results})


def _text(given: Any, where: str) -> str:
    if isinstance(given, str):
        return given
    kind = given.get("type") if isinstance(given, dict) else None
    if kind != "text" or not isinstance(given.get("text"), str):
        wire.refuse(f"{where} must be a text; nothing else can be guarded", where, "unsupported_part")
    wire.only(given, frozenset(("type", "text")), where)
    return str(given["text"])


async def scan(state: State, request: Request) -> Response:
    """Scan texts or conversations: one line of results each, as `tutelage guard scan` prints them."""
    who = auth.asker(request, "guard")
    limits = state.tenant(who.tenant).limits
    body = await wire.read_json(request, limits.body_bytes)
    wire.only(body, frozenset(("rows",)) if "rows" in body else ROW)
    rows = body.get("rows", [body])
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_SCANS:
        wire.refuse(f"'rows' must be a list of 1 to {MOST_SCANS} rows", "rows")
    asked = [_row(row, f"rows[{index}]", limits.characters) for index, row in enumerate(rows)]
    total = sum(wire.characters(messages) + len(answer or "") for messages, answer in asked)
    lines = []
    with state.lease() as pipeline, admitted(state, who.tenant, wire.tokens(total)):
        for index, (row, (messages, answer)) in enumerate(zip(rows, asked, strict=True)):
            found = await pipeline.examine(messages, answer, tenant=who.tenant)
            lines.append(found.line(str(row.get("id", index))))
    return JSONResponse({"results": lines, "policy": pipeline.policy.hash, "release": pipeline.release})


def _row(row: Any, where: str, most: int) -> tuple[tuple[Message, ...], str | None]:
    if not isinstance(row, dict):
        wire.refuse(f"{where} must be an object with 'text' or 'messages'", where)
    wire.only(row, ROW, where)
    name, answer = row.get("id", ""), row.get("answer")
    if isinstance(name, bool) or not isinstance(name, str | int) or len(str(name)) > 256:
        wire.refuse(f"{where}.id must be a number or a text of at most 256 characters", f"{where}.id")
    if answer is not None and (not isinstance(answer, str) or len(answer) > most):
        wire.refuse(f"{where}.answer must be a text of at most {most} characters", f"{where}.answer")
    if "text" not in row:
        return wire.messages(row, most), answer
    if "messages" in row:
        wire.refuse(f"{where} has 'text' or 'messages', not both", where)
    if not isinstance(row["text"], str) or len(row["text"]) > most:
        wire.refuse(f"{where}.text must be a text of at most {most} characters", f"{where}.text")
    return (Message(role="user", content=row["text"]),), answer
