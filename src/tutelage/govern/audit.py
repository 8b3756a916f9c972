"""Whether the ledger is whole: every row's hash follows from its words and the row before."""

from __future__ import annotations

from tutelage.core.records import Record
from tutelage.store import ledger
from tutelage.store.engine import Reader


class AuditReport(Record):
    """What walking the chain found. `first_bad` is the number of the first row that does not hold."""

    ok: bool
    rows: int
    head: str
    """The hash of the last row: note it elsewhere, and a shortened ledger shows as well."""
    first_bad: int | None = None
    reason: str = ""


def verify(store: Reader, *, head: str = "", at_least: int = 0) -> AuditReport:
    """Walk the ledger from its first row.

    `head` is a hash noted earlier: it must still stand somewhere in the chain. `at_least` is a number of rows noted
    earlier. Finds changed, missing, inserted and reordered rows; a chain cut at its end shows by `head` or `at_least`.
    """
    previous, count, seen = "", 0, not head
    for entry in ledger.rows(store):
        why = ""
        if entry.seq != count + 1:
            why = f"row {count + 1} is missing"
        elif entry.previous != previous:
            why = "it does not follow the row before it"
        elif entry.linked() != entry.hash:
            why = "its words were changed after it was written"
        if why:
            return AuditReport(ok=False, rows=count, head=previous, first_bad=entry.seq, reason=why)
        previous, count = entry.hash, count + 1
        seen = seen or entry.hash == head
    if not seen:
        return AuditReport(ok=False, rows=count, head=previous, reason="the head noted earlier is not in the chain")
    if count < at_least:
        reason = f"{at_least} rows were noted earlier, {count} are there"
        return AuditReport(ok=False, rows=count, head=previous, reason=reason)
    return AuditReport(ok=True, rows=count, head=previous)
