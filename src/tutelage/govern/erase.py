"""Erasing one person: the words leave the store, and everything that learned from them is named."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow.parquet as parquet
from pydantic import Field

from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import Refused, UsageError
from tutelage.core.records import Record
from tutelage.store import erasure, people, releases, retention
from tutelage.store.engine import Store


class Erased(Record):
    """What was erased and what still carries it. Weights do not forget: `artifacts` must be made anew or retired."""

    person: str
    """The name under which what stays goes on: the pseudonym of who judged, or the subject of traffic."""
    texts: int
    annotations: int
    """Answers that stay, without a word: rankings, scores, labels and marks are choices and no words."""
    requests: int
    """Requests whose rows stay, without a word."""
    artifacts: tuple[str, ...]
    """`kind:id` of everything that read this person's answers, or was made from it, in the order they were made."""
    releases: tuple[str, ...]
    """Ids of releases whose bundle is among them."""
    live: bool
    """Whether one of these releases answers now."""
    kept: dict[str, int] = Field(default_factory=dict)
    """Legal holds, `kind name: reason` -> how many requests they kept as they are."""
    remains: str = ""
    """Where the words still stand in the database's files, and until when; empty where they are overwritten."""


def readers_of(root: Root, rows: Iterable[str]) -> list[Artifact]:
    """The artifacts that used any of these rows of the store, and all that were made from them."""
    wanted = set(rows)
    found: dict[str, Artifact] = {}
    every = root.list()
    for artifact in every:
        if wanted and "rows.parquet" in artifact.manifest.files:
            table = parquet.read_table(artifact.path / "rows.parquet")
            if wanted & {str(value) for value in table.column(0).to_pylist()}:
                found[artifact.ref] = artifact
    grown = True
    while grown:
        grown = False
        for artifact in every:
            if artifact.ref not in found and set(artifact.manifest.parents()) & set(found):
                found[artifact.ref] = artifact
                grown = True
    return [artifact for artifact in every if artifact.ref in found]


def erase(store: Store, root: Root, *, person: str = "", subject: str = "", by: str) -> Erased:
    """Erase a person who judged (name or id) or a user of the service (subject), and name what learned from them.

    Rows stay, without words, so that counts, agreement and lineage still hold. Raises NotFound for an unknown person,
    Refused for one who judged and is under a legal hold.
    """
    if not person and not subject:
        raise UsageError("say whose words are erased", key="person")
    account = people.get(store, person) if person else None
    if account is not None:
        for hold in retention.holds(store):
            if hold.kind == "subject" and hold.name in (account.id, account.name, account.pseudonym):
                todo = f"Lift it first: tutelage hold lift {hold.id}"
                raise Refused(f"{account.name} is under a legal hold: {hold.reason}", todo=todo)
    words = erasure.words_of(store, person=account.id if account else "", subject=subject)
    affected = readers_of(root, [*words.annotations, *words.requests])
    texts = erasure.erase(store, words, person=account.id if account else "", subject=subject, by=by)
    bundles = {artifact.id for artifact in affected if artifact.kind == "bundle"}
    held = [each for each in releases.every(store) if each.bundle.split(":")[-1] in bundles]
    live = releases.current(store)
    return Erased(
        person=account.pseudonym if account else subject,
        texts=texts,
        annotations=len(words.annotations),
        requests=len(words.requests),
        artifacts=tuple(artifact.ref for artifact in affected),
        releases=tuple(each.id for each in held),
        live=live is not None and any(each.id == live.id for each in held),
        kept=dict(words.kept),
        remains=store.forget(),
    )
