"""An examination on a suite of one's own, sealed beside those of a life: listed, shown, and compared like them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.records import digest, write_jsonl
from tutelage.evaluate.further import Examination
from tutelage.evaluate.run import headline, made_as
from tutelage.evaluate.suite import Suite, item_id

STAGE = "examine"
"""By which name such an examination stands among what stages made."""
ROWS = ("results", "perturbed")
BILLS = ("endpoint", "judge_endpoint")
"""Parts of what was found that are told once: what an endpoint cost is no part of what it answered."""


def keep(
    found: Mapping[str, Any], ref: str, name: str, chosen: Sequence[Suite], config: Examination, root: Root
) -> Artifact:
    """Seal what `evaluate_reference` found of a reference on a suite called `name`, with the items that were asked.

    The same answers to the same items make the same artifact.
    """
    root.create()
    made, asked = made_as(ref, root), {row.item for row in found["results"]}
    folder = root.work / f"{STAGE}-{digest([ref, name, config.resolved()])[:16]}"
    with root.lock(folder.name, f"the examination of {ref}"):
        shutil.rmtree(folder, ignore_errors=True)  # what a killed one left
        folder.mkdir()
        items = [item for suite in chosen for item in suite.items if item_id(item) in asked]
        write_jsonl(folder / "items.jsonl", items)
        for part in (each for each in ROWS if found[each]):
            write_jsonl(folder / f"{part}.jsonl", found[part])
        told = {key: value for key, value in found.items() if key not in (*ROWS, *BILLS)}
        text = json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / "summary.json").write_text(text, encoding="utf-8")
        manifest = Manifest(
            kind="evaluation",
            stage=STAGE,
            version=1,
            config=config.resolved() | {"suite": name} | ({} if made else {"ref": ref}),
            inputs={"of": made.ref} if made else {},
            files=file_entries(folder),
            metrics=headline(found),
            licences=made.manifest.licences if made else [],
            simulated=bool(made and made.manifest.simulated) or any(each["simulated"] for each in found["judges"]),
            made={"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
        )
        return root.seal(folder, manifest, digest([STAGE, manifest.id]))
