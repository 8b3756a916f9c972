"""Examining: a model, a bundle or an endpoint on suites of one's own, and where suites come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.commands.base import (
    HERE,
    JsonOption,
    RootOption,
    app,
    artifact_of,
    check_name,
    emit,
    environment_defaults,
    known_root,
    root_at,
    say,
)
from tutelage.commands.making import list_keys, run_stage_alone
from tutelage.core.errors import ConfigError, NotFound, TutelageError, UsageError


@app.command()
def evaluate(
    target: Annotated[str | None, typer.Argument(help="What is examined: a model, a bundle, a URL, a section.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="key=value of the stage `evaluate`; with --suite of its further parts, or of an endpoint."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="A file of your own items, one JSON object a line, or a suite's name.")
    ] = None,
    items: Annotated[int, typer.Option(min=0, help="With --suite: items per suite and cell; 0 asks all.")] = 0,
    shots: Annotated[int, typer.Option(min=0, help="Worked examples before each item.")] = 0,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the examples, for what they add to the error.")] = 1,
    shots_from: Annotated[str, typer.Option(help="A file to draw the examples from.")] = "",
    form: Annotated[
        str, typer.Option(help="written (as the items say), chat or raw (without a template).")
    ] = "written",
    other_form: Annotated[bool, typer.Option("--other-form", help="Ask raw and templated; report the drop.")] = False,
    judge: Annotated[str, typer.Option(help="Who judges open-ended answers, as prompted:REFERENCE.")] = "",
    people: Annotated[str, typer.Option(help="Answers that people judged: a file, or preferences:ID.")] = "",
    stride: Annotated[int, typer.Option(min=0, help="Running text: tokens weighed per window; 0 is the context.")] = 0,
    weigh_labels: Annotated[bool, typer.Option("--weigh-labels", help="Weigh labels too, for calibration.")] = False,
    seed: Annotated[int, typer.Option(help="Which items and examples are drawn.")] = 0,
    root: RootOption = HERE,
    keys: Annotated[bool, typer.Option("--keys", help="List the inputs and keys of this stage, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Examine a model on a suite of your own, or (without --suite) run the stage `evaluate`."""
    from tutelage.life import made_last

    if keys:
        return list_keys("evaluate", as_json)
    where = root_at(root)
    last = made_last(where)
    if target and "=" not in target:
        check_name(target, last)
    if suite is None and target and "=" not in target:
        todo = f"tutelage evaluate {target} --suite FILE.jsonl; without a model it runs the stage `evaluate`"
        raise UsageError(f"say on what {target!r} is examined", key="--suite", todo=todo)
    if suite is None:
        return run_stage_alone("evaluate", [*([target] if target else []), *(settings or [])], root, as_json)
    if target is None:
        raise UsageError("name what is to be examined", todo="tutelage evaluate model:3fa9 --suite FILE.jsonl")
    from tutelage.evaluate.kept import keep
    from tutelage.evaluate.run import evaluate_reference

    how = {"shots": shots, "draws": draws, "shots_from": shots_from, "form": form, "other_form": other_form}
    how |= {"judge": judge, "people": people, "stride": stride, "weigh_labels": weigh_labels}
    config, endpoint = _settings(target, settings, how, seed, last)
    suites, dialogues = suites_of(suite, items, root, seed=config.seed, shots=config.how.shots > 0)
    ref = last.get(target, target)
    found = evaluate_reference(
        ref,
        suites,
        config,
        root=where,
        items=items,
        work=where.work / "answers",
        dialogues=dialogues,
        **endpoint,
    )
    failed, nothing = sum(each.value is None for each in found["results"]), unmeasured(found["results"])
    kept = None if nothing else keep(found, ref, Path(suite).name, suites, config, where)
    if as_json:
        told = {key: value for key, value in found.items() if key not in ("results", "perturbed")}
        emit(told | {"evaluation": kept and kept.ref})
    else:
        _tell_cells(found["cells"])
        if "endpoint" in found:
            say(_bill(found["endpoint"]))
        if "judge_endpoint" in found:
            say(f"the judge: {_bill(found['judge_endpoint'])}")
        _tell_further(found)
        _tell_ways(found)
        if failed < len(found["results"]):
            _tell_met(found["contamination"])
    if nothing is not None:
        raise TutelageError(nothing)
    if failed and not as_json:
        say(f"{failed} of {len(found['results'])} items were not measured: {_reasons(found['results'])}")
    if kept and not as_json:
        say(f"Kept as {kept.kind}:{kept.id[:12]}")


def unmeasured(results: Sequence[Any]) -> str | None:
    """Why nothing at all was measured; None where anything was."""
    if any(each.value is not None for each in results):
        return None
    return f"none of {len(results)} items was measured: {_reasons(results)}"


def _reasons(results: Sequence[Any], most: int = 3) -> str:
    """Why items were not measured, the most frequent reasons first."""
    counted = Counter(each.reason or "it failed" for each in results if each.value is None)
    told = [f"{reason} ({count})" if len(counted) > 1 else reason for reason, count in counted.most_common(most)]
    more = len(counted) - len(told)
    return "; ".join([*told, *([f"and {more} more reasons"] if more else [])])


def judge_of(judge: str, last: Mapping[str, str]) -> str:
    """A judge's reference, with a section of the last run in it (`prompted:finetune`) as what that made."""
    scheme, sign, named = judge.partition(":")
    return f"{scheme}:{last.get(named, named)}" if sign else last.get(judge, judge)


def _settings(
    target: str, settings: list[str] | None, how: Mapping[str, Any], seed: int, last: Mapping[str, str]
) -> tuple[Any, dict[str, Any]]:
    """With --suite: how the items are asked (by options or as `how.shots=2`) and what is asked beyond them; and the
    settings of the endpoint that is asked, where one is (see `endpoints.yaml` in docs/formats.md)."""
    from tutelage.core.config import build, parse_overrides
    from tutelage.evaluate.further import Examination
    from tutelage.evaluate.ways import Asking

    given = parse_overrides(settings or ())
    endpoint = {}
    if target.startswith(("http:", "https:")):
        endpoint = {key: given.pop(key) for key in list(given) if key not in Examination.model_fields}
    said = given.get("how", {})
    if not isinstance(said, Mapping):
        raise UsageError(f"expected keys of it, as how.shots=2, found {said!r}", key="how")
    options = {name: value for name, value in how.items() if value != Asking.model_fields[name].get_default()}
    for name in (*options, *(["seed"] if seed else [])):
        if name in (given if name == "seed" else said):
            raise UsageError(f"{name} is given twice", key=f"--{name.replace('_', '-')}", todo="Say it once")
    asked = {**said, **options}
    asked["judge"] = judge_of(str(asked.get("judge", "")), last)
    asked["people"] = last.get(str(asked.get("people", "")), str(asked.get("people", "")))
    return build(Examination, given | {"how": asked} | ({"seed": seed} if seed else {})), endpoint


def _bill(asked: Mapping[str, Any]) -> str:
    """What an endpoint was asked and cost, in a line."""
    kept = f" ({asked['kept']} kept from before)" if asked["kept"] else ""
    parts = [
        f"asked {asked['requests']} requests{kept}",
        f"{asked['input_tokens']:,} + {asked['output_tokens']:,} tokens in all runs",
    ]
    if asked["cost"] is not None:
        of = f" of {asked['budget']:g}" if asked["budget"] is not None else ""
        parts.append(f"cost {asked['cost']:.4f}{of}")
    for name, what in (
        ("retried", "tried again"),
        ("unanswered", "without an answer in time, perhaps charged"),
        ("estimated", "without a count of tokens, estimated"),
    ):
        if asked[name]:
            parts.append(f"{asked[name]} {what}")
    if asked["models"]:
        parts.append(f"answered by {', '.join(asked['models'])}")
    return "; ".join(parts)


def _tell_further(found: Mapping[str, Any]) -> None:
    """Print what was found beyond the figures of the suites: reliability, robustness, gaps between groups. Calibration,
    which is looked at unasked, only where there are items enough."""
    from tutelage.govern.standing import lines
    from tutelage.report.trust import texts

    def told(line: Any) -> bool:
        return line.area in ("robustness", "groups") or (
            line.area == "reliability" and "fewer than 300" not in (line.figure["reason"] or "")
        )

    for text in texts(line for line in lines([found], []) if told(line)):
        say(text)


def _tell_cells(cells: Sequence[Mapping[str, Any]]) -> None:
    """Print the figures of an examination, one to a line."""
    for cell in cells:
        shown = f"undefined: {cell['reason']}"
        if cell["value"] is not None and cell["low"] is not None:
            shown = f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
        elif cell["value"] is not None:
            shown = f"{cell['value']:.3f} (no interval: {cell['reason']})"
        name = " ".join(filter(None, (cell["suite"], cell["cell"])))
        lost = f" ({cell['unmeasured']} of {cell['asked']} not measured)" if cell["unmeasured"] else ""
        say(f"{name:<24}{cell['metric']:<25}{shown}  n={cell['n']}{lost if cell['headline'] else ''}")


def _tell_ways(found: Mapping[str, Any]) -> None:
    """Print what stands beside the figures: draws of examples, the other form, how judges and people agree."""

    def shown(each: Mapping[str, Any]) -> str:
        if each["value"] is None or each["low"] is None:
            return f"undefined: {each['reason']}" if each["value"] is None else f"{each['value']:+.3f} (no interval)"
        return f"{each['value']:+.3f} [{each['low']:+.3f}, {each['high']:+.3f}]"

    for each in found.get("draws", ()):
        name = " ".join(filter(None, (each["suite"], each["cell"])))
        moved = "" if each["deviation"] is None else f"; another draw moves it by {each['deviation']:.3f}"
        say(f"{name}: {each['metric']} over {each['draws']} draws of examples {shown(each)}{moved}")
    for each in found.get("forms", ()):
        name = " ".join(filter(None, (each["suite"], each["cell"])))
        change = shown(each["difference"])
        say(f"{name}: {each['metric']} asked as {each['other']} instead of {each['form']}: {change}")
    for each in found.get("judges", ()):
        if each["reason"]:
            say(f"{each['suite']}: the judge's agreement with people is not known: {each['reason']}")
            continue
        rank = "undefined" if each["correlation"] is None else f"{each['correlation']:.2f}"
        off, who = shown(each["difference"]), "simulated people" if each["simulated"] else "people"
        say(f"{each['suite']}: judge minus {who} {off}, rank correlation {rank}, n={each['difference']['n']}")
        if not each["follows"]:
            say(f"{each['suite']}: the judge's word does not surely go with {who}'s: a difference decides nothing")


def _tell_met(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print which items a model met in training, and what they are worth beside the others; or that nobody knows."""

    def shown(figure: Mapping[str, Any]) -> str:
        if figure["value"] is None:
            return f"undefined: {figure['reason']}"
        interval = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if figure["low"] is not None else " (no interval)"
        return f"{figure['value']:.3f}{interval}, n={figure['n']}"

    sides = ("clean", "dirty", "not_examinable")
    for why in dict.fromkeys(row["clean"]["reason"] for row in rows if not any(row[side]["n"] for side in sides)):
        say(f"items met in training: {why}")
    for row in rows:
        if row["dirty"]["n"]:
            told = f"those {shown(row['dirty'])}; the others {shown(row['clean'])}"
            say(f"{row['suite']}: {row['dirty']['n']} items stand in what it learned from: {told}")
    looked = sum(row["clean"]["n"] for row in rows)
    if looked and not any(row["dirty"]["n"] for row in rows):
        say(f"items met in training: none of {looked}")
    if short := sum(row["not_examinable"]["n"] for row in rows):
        say(f"items met in training: of {short} it cannot be told, for lack of a run of words that is theirs alone")


def suites_of(name: str, items: int, root: Path, *, seed: int = 0, shots: bool = False) -> tuple[list[Any], list[Any]]:
    """(suites, training rows beside them) of a file, of a source (`catalog:NAME`, `starter:more`), or of the last run's
    corpus by a suite's name. Raises NotFound, DataError."""
    from tutelage.core.config import nearest
    from tutelage.core.records import Example, read_jsonl
    from tutelage.evaluate.suite import load, select

    if name.partition(":")[0] in ("catalog", "starter", "hf"):
        return _source_suites(name, shots)
    if Path(name).is_file() or Path(name).suffix or "/" in name:
        return load(Path(name)), []
    corpus = artifact_of(known_root(root), "prepare")
    every = list(read_jsonl(corpus.file("items.jsonl"), Example))
    if chosen := select(every, items, only=[name], seed=seed):
        return list(chosen), list(read_jsonl(corpus.file("dialogues.jsonl"), Example))
    known = sorted({str(each.tags.get("suite")) for each in every})
    todo = f"Did you mean {near!r}?" if (near := nearest(name, known)) else f"There are: {', '.join(known) or 'none'}"
    raise NotFound(f"neither a file nor a suite: {name!r}", key="--suite", todo=todo)


def _source_suites(name: str, shots: bool) -> tuple[list[Any], list[Any]]:
    """The items of a source as suites and, for examples, some of its training dialogues; no run is needed."""
    from tutelage.core.config import build
    from tutelage.corpus.read import Source, gives, read
    from tutelage.evaluate.suite import suites
    from tutelage.starter.more import items_of

    try:
        source = build(Source, {"source": name, "kinds": ["items"]})
    except ConfigError as error:
        raise NotFound(error.message, key="--suite", todo=error.todo) from None
    if source.scheme == "starter":
        return list(suites(items_of(source.name))), []
    mirror = environment_defaults().get("mirror", "")
    found = read(source, mirror=mirror)
    training = source.model_copy(update={"kinds": ("dialogues",), "limit": 2000})
    beside = read(training, mirror=mirror).dialogues if shots and gives(training, "dialogues") else []
    return list(suites(found.items)), list(beside)
