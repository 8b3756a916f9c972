"""Suites as tasks of lm-evaluation-harness: one YAML file and one file of rows for each suite and kind.

Only metrics that the harness computes by itself are named (any other it would look up on the network), and fields are
columns, never templates, so that nothing in an item is taken for one. What cannot be said there is counted.

Choices under letters are asked in the item's own order, which is its raw accuracy here; the harness has no words for
the other orders. Of several right answers any counts; several references of a translation go to its corpus metrics
through four lines of Python beside the tasks, since it would score such a row as right or wrong by itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.core.errors import UsageError
from tutelage.core.records import Example
from tutelage.evaluate.ask import MAX_TOKENS
from tutelage.evaluate.suite import Suite, cluster_of, golds_of, item_id
from tutelage.evaluate.suites.choice import lettered
from tutelage.tokens.chat import text_of

MEAN = "mean"
CHOICE, GENERATE, WEIGH = "multiple_choice", "generate_until", "loglikelihood_rolling"
OUTPUT: Mapping[str, str] = {
    "choice": CHOICE,
    "classify": CHOICE,
    "extractive": GENERATE,
    "generate": GENERATE,
    "arithmetic": GENERATE,
    "summarise": GENERATE,
    "translate": GENERATE,
    "perplexity": WEIGH,
}
"""Kind of item -> what the harness asks. Other kinds are judged by programs that it does not have."""
METRICS: Mapping[str, tuple[tuple[str, str, bool], ...]] = {
    "acc": (("acc", MEAN, True), ("acc_norm", MEAN, True), ("acc_bytes", MEAN, True)),
    "brier": (("brier_score", "brier_score", False),),
    "exact": (("exact_match", MEAN, True),),
    "translate": (("bleu", "bleu", True), ("chrf", "chrf", True), ("ter", "ter", False)),
    "weigh": (
        ("word_perplexity", "weighted_perplexity", False),
        ("byte_perplexity", "weighted_perplexity", False),
        ("bits_per_byte", "bits_per_byte", False),
    ),
}
"""The only metrics that are written: (name, aggregation, higher is better)."""
REFERENCES = '''"""Written by tutelage: a translation with several references, for the corpus metrics of the harness."""


def results(doc, results):
    pair = ([each or None for each in doc["target"]], results[0])
    return {"bleu": pair, "chrf": pair, "ter": pair}
'''
NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"


def write(suites: Sequence[Suite], folder: Path) -> dict[str, Any]:
    """Write tasks into a folder; returns how many items each has, and how many were left out, by reason.

    The files name their rows by absolute path, since the harness reads a relative one from where it is started.
    `lm_eval --include_path FOLDER --tasks NAME`, with `--apply_chat_template` for those marked `chat`. Raises
    UsageError when nothing is left.
    """
    import yaml

    folder = folder.resolve()
    left: Counter[str] = Counter()
    groups: dict[str, list[tuple[Example, dict[str, Any]]]] = {}
    for suite in suites:
        for item in suite.items:
            row, chat = _row(item), item.messages[-1].role != "text"
            if isinstance(row, str):
                left[row] += 1
                continue
            name = "_".join(filter(None, ("tutelage", suite.name, str(item.tags["kind"]), "chat" if chat else "")))
            groups.setdefault(_word(name), []).append((item, row))
    if not groups:
        raise UsageError(f"no item can be a task of lm-evaluation-harness ({dict(left)})")
    folder.mkdir(parents=True, exist_ok=True)
    for name, members in sorted(groups.items()):
        rows = folder / f"{name}.jsonl"
        several = _aligned(members)
        rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for _, row in members), encoding="utf-8")
        text = yaml.safe_dump(_task(name, members, rows, several), sort_keys=False, allow_unicode=True)
        if several and members[0][0].tags["kind"] == "translate":
            (folder / "references.py").write_text(REFERENCES, encoding="utf-8")
            text += "process_results: !function references.results\n"
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return {"tasks": {name: len(members) for name, members in sorted(groups.items())}, "left_out": dict(left)}


def _word(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in name)


def _aligned(members: Sequence[tuple[Example, dict[str, Any]]]) -> bool:
    """Whether any row of a task has several right answers. Then all have a list of them, as the harness tells by the
    first; those of translations are of one length, where an empty reference stands for none."""
    rows = [row for _, row in members]
    longest = max(len(row["target"]) if isinstance(row["target"], list) else 1 for row in rows)
    if longest == 1:
        return False
    pad = members[0][0].tags["kind"] == "translate"
    for row in rows:
        given = row["target"] if isinstance(row["target"], list) else [row["target"]]
        row["target"] = given + ([""] * (longest - len(given)) if pad else [])
    return True


def _row(item: Example) -> dict[str, Any] | str:
    """An item as columns; a text where the harness has no words for it. `target` is a list where several are right."""
    kind, system = str(item.tags["kind"]), ""
    if kind not in OUTPUT:
        return f"kind {kind}: judged by a program or a judge of tutelage's"
    golds = golds_of(item)
    right = [place for place, choice in enumerate(item.choices) if choice in golds]
    if kind == "choice" and item.tags.get("options") == "letters" and right:
        item = lettered(item)
    turns = list(item.messages)
    if turns[0].role == "system":
        system, turns = text_of(turns[0]), turns[1:]
    if turns and turns[-1].role == "text":
        prompt = "".join(map(text_of, turns))
    elif len(turns) == 1 and turns[0].role == "user":
        prompt = text_of(turns[0])
    else:
        return "a conversation of several turns"
    row: dict[str, Any] = {"id": item_id(item), "cluster": cluster_of(item), "system": system, "prompt": prompt}
    if OUTPUT[kind] == WEIGH:
        return {**row, "prompt": "", "target": prompt}
    if OUTPUT[kind] == CHOICE:
        if not right:
            return "the target is not among the choices"
        return {**row, "choices": list(item.choices), "target": right if len(right) > 1 else right[0]}
    if not golds:
        return "nothing is said to be right"
    return {
        **row,
        "target": golds if len(golds) > 1 else golds[0],
        "max_tokens": int(item.tags.get("max_tokens") or MAX_TOKENS.get(kind, 32)),
    }


def _task(name: str, members: Sequence[tuple[Example, dict[str, Any]]], rows: Path, several: bool) -> dict[str, Any]:
    kind = str(members[0][0].tags["kind"])
    output, chat = OUTPUT[kind], members[0][0].messages[-1].role != "text"
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": output,
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "target_delimiter": "",
    }
    if any(row["system"] for _, row in members):
        task["description"] = "{{system}}"
    metrics = METRICS["weigh"]
    if output == CHOICE:
        task["doc_to_choice"] = "choices"
        alike = len({len(row["choices"]) for _, row in members}) == 1  # the harness stacks them into one table
        metrics = METRICS["acc"] + (METRICS["brier"] if alike and not several else ())
    elif output == GENERATE:
        metrics = METRICS["translate" if kind == "translate" else "exact"]
        longest = max(row["max_tokens"] for _, row in members)
        until = [] if chat else ["\n"]
        task["generation_kwargs"] = {"until": until, "max_gen_toks": longest, "do_sample": False, "temperature": 0.0}
        if kind == "arithmetic" or any(item.tags.get("extract") == "number" for item, _ in members):
            regex = {"function": "regex", "regex_pattern": NUMBER, "group_select": -1}
            task["filter_list"] = [{"name": "number", "filter": [regex, {"function": "take_first"}]}]
    named = []
    for metric, aggregation, higher in metrics:
        entry: dict[str, Any] = {"metric": metric, "aggregation": aggregation, "higher_is_better": higher}
        named.append(entry | ({"ignore_case": True, "ignore_punctuation": True} if metric == "exact_match" else {}))
    return {**task, "metric_list": named, "metadata": {"version": 1, "chat": chat}}
