"""What people wrote themselves: each rewrite is a demonstration, and a preference over the answer that it rewrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tutelage.core.records import Example, Message, Preference
from tutelage.store.answers import WHOLE, Annotation, Value
from tutelage.store.tasks import Task

Tags = Callable[[Task], dict[str, Any]]
"""The tags of a task's rows: split, cluster, people, licence and so on."""


def written(given: Annotation) -> Value | None:
    """The answer that says what was written, or that a candidate is good as it stands; None where there is none."""
    return next((each for each in given.values if each.question in ("rewrite", "as_is")), None)


def joined(
    given: Sequence[Annotation], shown: Mapping[str, Task], tags: Tags, trust: Mapping[str, float]
) -> tuple[list[Preference], list[Example]]:
    """Preferences and demonstrations of what people wrote, in the order of the answers.

    `shown` holds the tasks with their texts as people saw them, personal data masked: that is what they rewrote.
    Rewrites of one text by several people share its weight. Whoever is not trusted at all (0) is left out. `rows` of
    a preference and the tag `rows` of a demonstration lead back to the answer.
    """
    found = [(each, value) for each in given if (value := written(each)) and trust.get(each.pseudonym, 1.0) > 0]
    many = Counter((each.task, value.candidate) for each, value in found if value.question == "rewrite")
    preferences, demonstrations = [], []
    for each, value in found:
        task = shown[each.task]
        no = value.candidate if value.candidate != WHOLE or not task.candidates else 0
        text = value.text if value.question == "rewrite" else task.candidates[no]
        if not text or not task.messages:
            continue  # erased
        row = tags(task) | {"person": each.pseudonym, "kind": value.question}
        answer = Message(role="assistant", content=text)
        more = row | {"id": f"{each.id}", "rows": [each.id], "family": row.get("family") or "people"}
        demonstrations.append(Example(messages=(*task.messages, answer), target=text, tags=more))
        if value.question == "rewrite" and no != WHOLE and task.candidates[no]:
            preferences.append(
                Preference(
                    prompt=task.messages,
                    candidates=(answer, Message(role="assistant", content=task.candidates[no])),
                    tiers=((0,), (1,)),
                    weight=round(1 / many[each.task, value.candidate], 6),
                    rows=(each.id,),
                    tags=row | {"n": 1, "producers": [each.pseudonym, task.producers[no]]},
                )
            )
    return preferences, demonstrations
