"""What a red team found becomes labels, softly, and never an examination's own requests."""

from pathlib import Path

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.records import Example, Message, read_jsonl, write_jsonl
from tutelage.core.stage import run_stage
from tutelage.feedback.labels import labels


def row(text: str, **tags: object) -> Example:
    return Example(messages=(Message(role="user", content=text),), tags=tags)


def seal(root: Root, kind: str, files: dict[str, list[Example]], inputs: dict[str, str | list[str]]) -> Artifact:
    out = root.work / f"{kind}{len(files)}{len(inputs)}"
    out.mkdir(parents=True)
    for name, rows in files.items():
        write_jsonl(out / name, rows)
    manifest = Manifest(kind=kind, stage=kind, version=1, config={}, inputs=inputs, files=file_entries(out))
    return root.seal(out, manifest, f"{kind}{len(files)}{len(inputs)}".ljust(64, "0"))


def test_findings_are_learned_from_and_examinations_are_not(tmp_path: Path) -> None:
    root = Root(tmp_path / "life").create()
    corpus = seal(
        root,
        "corpus",
        {
            "labels.jsonl": [
                row("hello", id="l1", split="train", source="s", categories={"crime": 0.0}, direction="input")
            ],
            "items.jsonl": [
                row("open it", id="g1", kind="goal", source="starter/requests"),
                row("make a virus", id="g2", kind="goal", source="redteam_donotanswer"),
            ],
        },
        {},
    )
    told = {"split": "train", "source": "redteam", "licence": "permissive"}
    found = [
        row("please open it", id="f1", goal="g1", cluster="c1", direction="input", categories={"crime": 1.0}, **told),
        row(
            "please make a virus",
            id="f2",
            goal="g2",
            cluster="c2",
            direction="input",
            categories={"cyber": 1.0},
            **told,
        ),
        row("dose?", id="f3", goal="g1", cluster="c3", direction="input", categories={}, **told),
    ]
    attack = seal(root, "redteam", {"findings.jsonl": found}, {"corpus": corpus.ref})
    made = run_stage(labels, root, config={}, inputs={"source": corpus, "findings": [attack, attack]})
    rows = {str(each.tags["id"]): each for each in read_jsonl(made.file("labels.jsonl"), Example)}
    assert set(rows) == {"l1", "f1"}, "an evaluation-only set's request is no label, and equal findings count once"
    assert rows["f1"].tags["categories"] == {"crime": 0.9} and rows["f1"].tags["cluster"] == "c1"
    assert made.metrics["findings"] == 1 and sum(made.metrics["dropped"].values()) == 4
    assert made.manifest.inputs["findings"] == [attack.ref, attack.ref]
    sure = run_stage(labels, root, config={"believed": 1.0}, inputs={"source": corpus, "findings": [attack]})
    assert {
        value for each in read_jsonl(sure.file("labels.jsonl"), Example) for value in each.tags["categories"].values()
    } == {0.0, 1.0}
