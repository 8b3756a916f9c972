"""The stage: every target on the same items, resumable to the byte, with controls that fail as they must."""

import json
import random
import types

import pytest

from tutelage.core import refs
from tutelage.core.artifact import Root
from tutelage.core.config import Config
from tutelage.core.errors import DataError, Stopped, Unreachable, UsageError
from tutelage.core.records import Example, Message, Preference, Response, read_jsonl, write_jsonl
from tutelage.core.stage import Input, run_stage, stage
from tutelage.evaluate import ask, run
from tutelage.evaluate.suite import Result, select
from tutelage.generate import fake
from tutelage.generate.generator import Scored

PLACES = ("mill street", "stone bridge", "north gate", "old harbour")
MOODS = ("positive", "negative", "neutral")
WORDS = {"red": "velo", "blue": "siro", "door": "tar", "boat": "mun", "old": "keth", "bird": "pila"}
CUES = {"positive": "lovely", "negative": "awful", "neutral": "plain"}


def _item(number, suite, kind, text, target, choices=(), **tags):
    base = {"id": f"{suite}-{number}", "suite": suite, "kind": kind, "cell": "AB"[number % 2], "split": "test"}
    base |= {"cluster": f"{suite}{number % 24}", "slices": {"group": "hill" if number % 4 else "market"}}
    return Example.ask(text, target=target).model_copy(update={"choices": choices, "tags": base | tags})


def material(count=96, seed=0):
    rng = random.Random(seed)
    items, dialogues = [], []
    for number in range(count):
        here, there = rng.sample(PLACES, 2)
        first = f"Ana lives in {here}. Bo lives in {there}. Where does {rng.choice(['Ana', 'Bo'])} live?"
        answer = here if "does Ana" in first else there
        items.append(_item(number, "comprehension", "extractive", first, answer, candidates=[here, there]))
        mood = rng.choice(MOODS)
        items.append(_item(number, "sentiment", "classify", f"The soup was {CUES[mood]}. Mood?", mood, MOODS))
        pair = rng.sample(sorted(WORDS), 5)
        items.append(
            _item(number, "translation", "translate", f"Into Velic: {' '.join(pair)}", " ".join(WORDS[w] for w in pair))
        )
        items.append(
            _item(number, "grammar", "choice", "Which is right?", "he goes home", ("he goes home", "he go home"))
        )
    for number in range(60):
        mood = MOODS[number % 3]
        turns = (
            Message(role="user", content=f"A {CUES[mood]} day {number}. Mood?"),
            Message(role="assistant", content=mood),
        )
        dialogues.append(Example(messages=turns, tags={"id": f"d{number}", "suite": "sentiment", "split": "train"}))
    return items, dialogues


class Clever:
    """Answers right `skill` of the time, by what is written in the item only."""

    def __init__(self, name, skill, seed=0):
        self.name, self.skill, self.seed, self.asked = name, skill, seed, 0

    def generate(self, prompts, sampling):
        self.asked += len(prompts)
        return [[self._say(prompt)] for prompt in prompts]

    def _say(self, prompt):
        text = prompt.messages[-1].content
        rng = random.Random(f"{self.seed}{text}{prompt.tags['id']}")
        knows = rng.random() < self.skill
        if "live?" in text:
            right = prompt.tags["candidates"][0 if "does Ana" in text else 1]
            answer = right if knows else rng.choice(PLACES)
        elif "Mood?" in text:
            answer = next((m for m in MOODS if CUES[m] in text), "neutral") if knows else rng.choice(MOODS)
        else:
            answer = " ".join(WORDS.get(w, w) if knows else "tar" for w in text.removeprefix("Into Velic: ").split())
        return Response(message=Message(role="assistant", content=answer), finish="stop", generator=self.name)

    def loglikelihood(self, prompts, choices):
        scored = []
        for prompt, texts in zip(prompts, choices, strict=True):
            rng = random.Random(f"{self.seed}{prompt.tags['id']}")
            best = "he goes home" if rng.random() < self.skill else rng.choice(texts)
            scored.append(
                [
                    Scored(logprob=-1.0 if text == best else -3.0, tokens=2, characters=len(text), greedy=text == best)
                    for text in texts
                ]
            )
        return scored


@pytest.fixture
def life(tmp_path, monkeypatch):
    """A root with a corpus and two models, whose references open as fakes."""
    root = Root(tmp_path / "life").create()
    items, dialogues = material()

    @stage(makes="corpus", config=Config)
    def prepare(config, inputs, out, context):
        write_jsonl(out / "items.jsonl", items)
        write_jsonl(out / "dialogues.jsonl", dialogues)
        return {}

    corpus = run_stage(prepare, root)
    made, opened = [], {}
    for name, skill in (("pretrain", 0.05), ("finetune", 0.9)):

        def body(config, inputs, out, context, name=name):
            (out / "config.json").write_text(name)
            return {}

        body.__name__ = name
        artifact = run_stage(stage(makes="model", config=Config)(body), root)
        made.append(artifact)
        opened[artifact.ref] = Clever(name, skill)
    fakes = types.ModuleType("evaluate_fakes")
    fakes.open_fake = lambda ref, root=None, **options: opened[ref]
    monkeypatch.setitem(__import__("sys").modules, "evaluate_fakes", fakes)
    monkeypatch.setitem(refs.SCHEMES, "model", "evaluate_fakes:open_fake")
    monkeypatch.setattr(run, "untrained", lambda ref, root: Clever("untrained", 0.0, seed=9))
    return types.SimpleNamespace(root=root, corpus=corpus, made=made, opened=opened)


def evaluated(life, **config):
    settings = {"items": 0, "items_of": {}, "resamples": 50} | config
    return run_stage(run.evaluate, life.root, config=settings, inputs={"of": life.made, "corpus": life.corpus})


def test_the_summary_states_what_each_figure_is_worth(life):
    found = evaluated(life)
    rows = list(read_jsonl(found.file("results.jsonl"), Result))
    assert len(rows) == 2 * 96 * 4
    summary = json.loads(found.file("summary.json").read_text())
    cells = {(c["target"], c["suite"], c["cell"], c["metric"]): c for c in summary["cells"]}
    assert {c["cell"] for c in summary["cells"]} == {"A", "B"}, "cells are never averaged"
    good, bad = cells["finetune", "comprehension", "A", "f1"], cells["pretrain", "comprehension", "A", "f1"]
    assert good["learned"] is True
    assert bad["learned"] is False
    assert good["n"] == 48
    assert good["clusters"] == 12
    assert good["low"] < good["value"] <= good["high"]
    assert good["chance"] == 0.5, "two places stand in each text"
    assert good["baseline"]["name"] in ("first-mention", "last-mention")
    assert good["visible_difference"] > 0
    mood = cells["finetune", "sentiment", "A", "accuracy"]
    assert mood["baseline"] == {"name": "tfidf-classifier", "value": 1.0}
    assert mood["learned"] is False, "a classifier on the tuning rows does it too"
    for metric in ("chrf", "bleu"):
        translated = cells["finetune", "translation", "A", metric]
        assert 0 < translated["low"] < translated["value"] <= 1
        assert "version:" in translated["signature"]
    assert cells["finetune", "grammar", "A", "accuracy"]["value"] > 0.8
    assert cells["finetune", "grammar", "A", "calibration_error"]["reason"] == "fewer than 300 items"
    assert {s["group"] for s in summary["slices"]} == {"hill", "market"}
    assert any(s["reason"] for s in summary["slices"])
    figures = found.metrics["figures"]
    assert figures["finetune"]["comprehension/A"]["value"] == good["value"]


def test_controls_hold(life):
    summary = json.loads(evaluated(life).file("summary.json").read_text())
    shuffled = [c for c in summary["controls"] if c["control"] == "shuffled labels" and c["target"] == "finetune"]
    assert {c["suite"] for c in shuffled} == {"comprehension", "sentiment", "translation"}
    assert all(c["holds"] for c in shuffled if c["suite"] != "translation")
    assert all(c["value"] < c["true_labels"] - 0.2 for c in shuffled)
    untrained = [c for c in summary["controls"] if c["control"] == "untrained model"]
    assert {c["suite"] for c in untrained} == {"grammar", "sentiment"}
    assert all(c["holds"] for c in untrained)


def test_a_killed_run_goes_on_and_seals_the_same_bytes(life, tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "CHUNK", 16)
    whole = evaluated(life, seed=0)
    first = {each: each and generator.asked for each, generator in life.opened.items()}
    other = Root(tmp_path / "other").create()
    count = {"left": 5}

    def stop():
        count["left"] -= 1
        return count["left"] < 0

    settings = {"items": 0, "items_of": {}, "resamples": 50, "seed": 0}
    inputs = {"of": life.made, "corpus": life.corpus}
    for generator in life.opened.values():
        generator.asked = 0
    with pytest.raises(Stopped):
        run_stage(run.evaluate, other, config=settings, inputs=inputs, stop=stop)
    logs = list(other.work.glob("*/answers.jsonl"))
    assert len(logs) == 1
    with logs[0].open("a") as torn:
        torn.write('{"key": "half a li')
    resumed = run_stage(run.evaluate, other, config=settings, inputs=inputs)
    for name in ("results.jsonl", "summary.json"):
        assert resumed.file(name).read_bytes() == whole.file(name).read_bytes()
    assert resumed.id == whole.id
    assert {each: generator.asked for each, generator in life.opened.items()} == first, "nothing was asked twice"


def test_changes_are_paired_and_corrected():
    artifacts = [
        types.SimpleNamespace(
            ref=f"model:{n}", id=str(n) * 12, kind="model", config=c, manifest=types.SimpleNamespace(stage=s, inputs=i)
        )
        for n, (s, c, i) in enumerate(
            [
                ("finetune", {}, {}),
                ("rlhf", {"method": "ppo"}, {"model": "model:0"}),
                ("rlhf", {"method": "grpo"}, {"model": "model:0"}),
                ("rlhf", {"method": "grpo"}, {"model": "model:9"}),
            ]
        )
    ]
    called = run.names(artifacts)
    assert called == ["finetune", "rlhf", "rlhf@grpo", "rlhf@33333333"]
    assert run.parents(artifacts, called) == [("finetune", "rlhf"), ("finetune", "rlhf@grpo")]
    items, _ = material()
    results = [
        each
        for name, skill in (("finetune", 0.2), ("rlhf", 0.95))
        for each in ask.examine(Clever(name, skill), items, target=name)
    ]
    table = run.summary.changes(results, [("finetune", "rlhf")], run.summary.by_id(items))
    assert len([row for row in table if row["headline"]]) == 8
    assert {(row["suite"], row["metric"]) for row in table if not row["headline"]} == {("translation", "bleu")}
    gain = next(row for row in table if row["suite"] == "comprehension" and row["cell"] == "A")
    assert gain["low"] > 0
    assert gain["p"] <= gain["p_holm"] < 0.05
    assert gain["better"] > gain["worse"]


class Broken(Clever):
    """An endpoint that refuses some prompts, however they are asked."""

    def generate(self, prompts, sampling):
        if any(int(p.tags["id"].split("-")[1]) % 8 == 0 for p in prompts):
            raise UsageError("the prompt is longer than the context")
        return super().generate(prompts, sampling)


def test_what_cannot_be_asked_is_unknown_and_lowers_coverage():
    items, _ = material()
    items = [each for each in items if each.tags["suite"] == "comprehension"]
    results = ask.examine(Broken("broken", 0.9), items, target="broken")
    lost = [each for each in results if each.value is None]
    assert len(lost) == 12
    assert all(each.outcome == "unknown" and "longer" in each.reason for each in lost)
    cells = run.summarise(results, select(items, 0), ())["cells"]
    assert sum(c["unmeasured"] for c in cells if c["headline"]) == 12
    assert sum(c["n"] for c in cells if c["headline"]) == 84


class Down(Clever):
    """An endpoint that nobody reaches."""

    asked = 0

    def generate(self, prompts, sampling):
        self.asked += 1
        raise Unreachable("m failed: ConnectionRefusedError")


def test_an_endpoint_that_is_down_is_not_waited_for_item_by_item():
    items = list(
        {each.messages[0].content: each for each in material()[0] if each.tags["kind"] == "extractive"}.values()
    )
    down = Down("down", 0.9)
    results = ask.examine(down, items, target="down")
    assert {each.outcome for each in results} == {"unknown"} and len(items) > 10
    assert all(each.reason.endswith("m failed: ConnectionRefusedError") for each in results)
    assert sum(each.reason.startswith("not asked any more: 3 in a row") for each in results) == len(items) - 3
    assert down.asked == 4, "all together, then the first three by themselves"


def test_one_that_is_not_reached_costs_itself_alone():
    class Lame(Clever):
        def generate(self, prompts, sampling):
            if any(prompt.tags["id"] == first for prompt in prompts):
                raise Unreachable("m failed: no answer within 60 s")
            return super().generate(prompts, sampling)

    items = list(
        {each.messages[0].content: each for each in material()[0] if each.tags["kind"] == "extractive"}.values()
    )
    first = min(items, key=lambda item: (sum(len(m.content) for m in item.messages), item.tags["id"])).tags["id"]
    results = ask.examine(Lame("lame", 0.9), items, target="lame")
    assert [each.item for each in results if each.value is None] == [first]


def test_a_corpus_without_items_is_refused(life):
    with pytest.raises(DataError, match="no examination items"):
        evaluated(life, only=["nothing"])


def test_own_file(life, tmp_path):
    items, _ = material(8)
    write_jsonl(tmp_path / "own.jsonl", [each for each in items if each.tags["suite"] == "comprehension"])
    life.opened[life.made[1].ref].identity = "a hash of its weights"
    found = run.evaluate_reference(life.made[1].ref, tmp_path / "own.jsonl", root=life.root, work=tmp_path / "w")
    assert found["cells"][0]["n"] == 4
    assert (tmp_path / "w" / "answers.jsonl").is_file()


LEARNED = "the harbour master keeps the long list of ships under the third stair of his house"


def test_own_items_that_the_model_met_in_training_are_told_apart(life, tmp_path):
    """Looked up in the corpora that a model or bundle was made from; of anything else nobody knows, and it says so."""
    said = (Message(role="user", content=f"Is it true that {LEARNED}?"), Message(role="assistant", content="It is."))

    @stage(makes="corpus", config=Config)
    def gather(config, inputs, out, context):
        write_jsonl(out / "items.jsonl", [])
        write_jsonl(out / "dialogues.jsonl", [Example(messages=said, tags={"id": "d", "split": "train"})])
        return {}

    @stage(makes="model", config=Config, inputs={"corpus": Input(kind="corpus")})
    def tune(config, inputs, out, context):
        (out / "config.json").write_text("tuned")
        return {}

    corpus = run_stage(gather, life.root)
    tuned = run_stage(tune, life.root, inputs={"corpus": corpus})
    life.opened[tuned.ref] = fake.FakeGenerator("yes", name="tuned")
    rows = [{"id": "met", "prompt": f"Say whether {LEARNED}.", "target": "yes"}]
    rows += [
        {"id": f"new{n}", "prompt": f"Is it so that house number {n} has got a door?", "target": "no"} for n in range(3)
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (row,) = run.evaluate_reference(tuned.ref, file, root=life.root)["contamination"]
    assert (row["suite"], row["dirty"]["n"], row["dirty"]["value"]) == ("own", 1, 1.0)
    assert (row["clean"]["n"], row["clean"]["value"]) == (3, 0.0)
    (other,) = run.evaluate_reference(life.made[1].ref, file, root=life.root)["contamination"]
    assert (
        other["clean"]["value"] is None and other["clean"]["reason"] == "what finetune learned from is not known here"
    )
    (alien,) = run.evaluate_reference("fake:say yes", file)["contamination"]
    assert alien["dirty"]["value"] is None and "not known" in alien["dirty"]["reason"]
    assert (
        run.evaluate_reference(tuned.ref, file, run.Examination(contamination=0), root=life.root)["contamination"] == []
    )


def test_the_best_of_several_answers_met_what_its_model_and_its_reward_met(life, monkeypatch):
    """It is a target like the others, and what it learned from is known: it has a row of clean and dirty items too."""
    said = (Message(role="user", content=LEARNED),)

    def made(kind, inputs, write):
        def body(config, inputs, out, context):
            write(out)
            return {}

        body.__name__ = f"{kind}_of_it"
        needs = {name: Input(kind=each.kind) for name, each in inputs.items()}
        return run_stage(stage(makes=kind, config=Config, inputs=needs)(body), life.root, inputs=inputs)

    def judged(out):
        answers = (Message(role="assistant", content="yes"), Message(role="assistant", content="no"))
        write_jsonl(out / "preferences.jsonl", [Preference(prompt=said, candidates=answers)])

    judged_ = made("preferences", {}, judged)
    base = life.made[1]
    reward = made("reward", {"model": base, "preferences": judged_}, lambda out: (out / "w").write_text("w"))

    def chosen(n, reward, known, context):
        return "finetune, best of 2", "best-of-2", Clever("best", 0.95, seed=3)

    monkeypatch.setattr(run, "_best_of", chosen)
    settings = {"items": 0, "resamples": 50, "best_of": 2, "controls": 0, "only": ["comprehension"]}
    inputs = {"of": [base], "corpus": life.corpus, "reward": reward}
    found = json.loads(
        run_stage(run.evaluate, life.root, config=settings, inputs=inputs).file("summary.json").read_text()
    )
    rows = {row["target"]: row for row in found["contamination"]}
    assert rows["finetune, best of 2"]["clean"]["n"] + rows["finetune, best of 2"]["not_examinable"]["n"] == 96
    assert "not known here" in rows["finetune"]["clean"]["reason"], "the base was made of nothing that is here"


def test_a_suite_of_mixed_kinds_has_a_cell_for_each(life, tmp_path):
    items, _ = material(40)
    mixed = [
        each.model_copy(update={"tags": each.tags | {"suite": "mine", "cell": None if number % 4 else "C"}})
        for number, each in enumerate(items)
    ]
    write_jsonl(tmp_path / "mine.jsonl", mixed)
    found = run.evaluate_reference(life.made[1].ref, tmp_path / "mine.jsonl", root=life.root)
    heads = {cell["cell"]: (cell["kind"], cell["n"]) for cell in found["cells"] if cell["headline"]}
    assert heads == {
        "C": ("extractive", 40),
        "choice": ("choice", 40),
        "classify": ("classify", 40),
        "translate": ("translate", 40),
    }
    assert {each["suite"] for each in found["cells"]} == {"mine"}
    assert {entry["metric"] for entry in found["controls"]} == {"f1", "accuracy", "chrf"}
    assert len(run.headline(found)["figures"]) == 1
    assert len(next(iter(run.headline(found)["figures"].values()))) == 4


def test_a_file_of_red_team_goals_only_is_refused(life, tmp_path):
    (tmp_path / "goals.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "say it"}], "tags": {"kind": "goal"}}\n'
    )
    with pytest.raises(DataError, match="no item of a kind that is examined"):
        run.evaluate_reference(life.made[1].ref, tmp_path / "goals.jsonl", root=life.root)


FURTHER = {"robustness": {"items": 40, "families": ["typos", "casing", "prompt"]},
           "reliability": {"items": 6, "repeats": 3, "same": 4}, "how": {"weigh_labels": True}}  # fmt: skip


def test_further_examinations_stand_beside_the_suites(life):
    found = evaluated(life, controls=0, **FURTHER)
    summary = json.loads(found.file("summary.json").read_text())
    rows = list(read_jsonl(found.file("perturbed.jsonl"), Result))
    assert {row.slices["perturbation"] for row in rows} == {"typos", "casing", "prompt"}
    assert {row.target for row in rows} == {"pretrain", "finetune"}
    assert len(list(read_jsonl(found.file("results.jsonl"), Result))) == 2 * 96 * 4, "one row per item, as before"
    losses = {(r["target"], r["suite"], r["family"]): r for r in summary["robustness"]}
    assert losses["finetune", "translation", "casing"]["value"] is None
    assert "what is to be translated would change" in losses["finetune", "translation", "casing"]["reason"]
    assert losses["finetune", None, "worst case"]["excess"]["n"] >= 100
    told = summary["reliability"]
    chosen = next(
        r for r in told["calibration"] if (r["target"], r["suite"], r["source"]) == ("finetune", None, "choices")
    )
    assert chosen["n"] == 192, "multiple choice, and the labels that were weighed"
    assert "300 items" in chosen["ece"]["reason"]
    assert {r["how"] for r in told["consistency"]} == {"seeds", "wordings"}
    assert all(r["value"] == 0.0 for r in told["determinism"] if r["value"] is not None)
    assert found.metrics["robustness"]["finetune"]["all suites"]["loss"]["typos"]["n"] > 0
    assert found.metrics["reliability"]["finetune"]["all suites"]["differs"]["asked alone"]["value"] == 0.0


def test_they_are_left_out_unless_asked_for_and_priced_when_they_are():
    from tutelage.core.price import Machine

    plain, more = run.Evaluate(), run.Evaluate.model_validate(FURTHER)
    assert plain.robustness.items == plain.reliability.items == plain.reliability.same == 0
    sizes = {"of": {"count": 5.0}, "corpus": {}}
    cheap, dear = (run._cost(config, sizes, Machine()) for config in (plain, more))
    assert dear.seconds > cheap.seconds + 1
    assert dear.tokens > cheap.tokens


def test_a_killed_examination_goes_on_where_it_was(life):
    whole = evaluated(life, controls=0, **FURTHER).file("summary.json").read_text()
    seen = 0

    def stop():
        nonlocal seen
        seen += 1
        return seen > 9

    settings = {"items": 0, "items_of": {}, "resamples": 50, "controls": 0, "seed": 0} | FURTHER
    other = Root(life.root.path.parent / "other").create()
    with pytest.raises(Stopped):
        run_stage(run.evaluate, other, config=settings, inputs={"of": life.made, "corpus": life.corpus}, stop=stop)
    again = run_stage(run.evaluate, other, config=settings, inputs={"of": life.made, "corpus": life.corpus})
    assert again.file("summary.json").read_text() == whole
