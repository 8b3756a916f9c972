"""People score, rank and tag; their words are weighed, never pooled with those of simulated or replayed people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.feedback.client import Client
    from tutelage.feedback.wire import Answer, Claim, Form, Item, NewCandidate, NewProject, NewTask, Question

__all__ = ["Answer", "Claim", "Client", "Form", "Item", "NewCandidate", "NewProject", "NewTask", "Question"]


def __getattr__(name: str) -> Any:
    """Imported at first use: the package itself stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'tutelage.feedback' has no attribute {name!r}")
    from tutelage.feedback import client, wire

    return client.Client if name == "Client" else getattr(wire, name)
