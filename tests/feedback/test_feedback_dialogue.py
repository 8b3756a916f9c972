"""Free dialogue: blind answers side by side, the chosen one goes on; slow and failing generators lose no message."""

from __future__ import annotations

import re
import threading

import pytest
from pydantic import ValidationError

from tutelage.core.artifact import Root
from tutelage.core.errors import DataError, NotFound, UpstreamError, Waiting
from tutelage.core.records import Example, Message, Preference, read_jsonl
from tutelage.core.stage import run_stage
from tutelage.feedback import api, dialogue, routes
from tutelage.feedback.collect import collect
from tutelage.feedback.preferences import preferences
from tutelage.feedback.wire import EndDialogue, NewTurn
from tutelage.generate.fake import FakeGenerator
from tutelage.store import answers, dialogues, engine, erasure, oversight, people, tasks

WORDS = {
    "kind": lambda example, sample: f"Gladly: {example.messages[-1].content} ({len(example.messages)})",
    "curt": lambda example, sample: f"No. {example.messages[-1].content[::-1]}",
    "twin": lambda example, sample: f"Gladly: {example.messages[-1].content} ({len(example.messages)})",
    "vain": lambda example, sample: "I am ChatGPT, trained by OpenAI.",
}


class House:
    """A store with a dialogue project, two people, and generators by name."""

    def __init__(self, where, generators=("kind", "curt"), kind="choice", required=False, **settings):
        self.root, self.store = Root(where), engine.open(where)
        self.lead = people.create(self.store, "lead", roles=["lead"])
        self.ana, self.ben = people.create(self.store, "ana"), people.create(self.store, "ben")
        self.calls: list[str] = []
        self.speakers = dialogue.Speakers(self.open)
        self.slow = threading.Event()
        form = api.Form(
            questions=(api.Question(key="strength", kind=kind, choices=("slightly", "much"), required=required),)
        )
        told = {"generators": list(generators), "timeout_s": 20, **settings}
        new = api.NewProject(name="talks", kind="dialogue", form=form, per_task=1, settings={"dialogue": told})
        api.create_project(self.store, self.lead, new)

    def open(self, name):
        if name == "missing":
            raise NotFound("no such generator")

        def say(example, sample):
            self.calls.append(name)
            if name == "slow":
                self.slow.wait(20)
            if name == "broken":
                raise UpstreamError("the cable is cut")
            if name == "odd":
                raise RuntimeError("a bug of somebody else")
            return WORDS.get(name, WORDS["kind"])(example, sample)

        return FakeGenerator(say, name=name)

    def say(self, text, key="", person=None, **more):
        new = NewTurn(message=text, key=key or f"key of {text}", **more)
        return dialogue.say(self.store, person or self.ana, "talks", new, self.speakers)

    def judge(self, item, person=None, **fields):
        order = [each.no for each in sorted(item.candidates, key=lambda each: each.content)]
        given = {"tiers": [[no] for no in order]} | fields
        answer = api.Answer(slot=item.slot, epoch=item.epoch, key=f"answer-{item.slot}", **given)
        (receipt,) = api.submit(self.store, person or self.ana, api.Answers(answers=(answer,))).receipts
        assert receipt.status == "stored", receipt.error

    def end(self, name=""):
        return dialogue.end(self.store, self.ana, "talks", EndDialogue(dialogue=name))


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    yield made
    made.slow.set()
    made.store.close()


def texts(view) -> list[str]:
    return [each.content for each in view.messages]


def test_a_conversation_goes_on_from_what_is_chosen_until_it_is_ended(house):
    first = house.say("Where is the pier?")
    assert texts(first) == ["Where is the pier?"] and first.item.kind == "dialogue" and first.turns == 1
    assert {each.content for each in first.item.candidates} == {
        "Gladly: Where is the pier? (1)",
        "No. ?reip eht si erehW",
    }
    assert not any(name in first.model_dump_json() for name in ('"kind":"kind"', "curt", "producer"))
    house.judge(first.item, values={"strength": "much"})
    second = house.say("And the mill?")
    assert second.dialogue == first.dialogue
    assert texts(second) == ["Where is the pier?", "Gladly: Where is the pier? (1)", "And the mill?"]
    order = [each.no for each in second.item.candidates]
    house.judge(second.item, tiers=[order])  # a tie
    stood_first = second.item.candidates[0].content
    third = house.say("Thank you")
    assert texts(third)[3] == stood_first
    house.judge(third.item, rewrite="You are welcome.")
    done = house.end()
    assert done.ended and texts(done)[-1] == "You are welcome."
    assert house.end(done.dialogue).ended, "ending again changes nothing"
    with pytest.raises(DataError, match="has ended"):
        house.say("One more", dialogue=done.dialogue)
    fresh = house.say("Hello")
    assert fresh.dialogue != done.dialogue and texts(fresh) == ["Hello"]


def test_every_turn_is_one_answer_with_its_candidates_and_the_whole_is_a_demonstration(house):
    for at, text in enumerate(("one", "two", "three")):
        house.judge(house.say(text).item, **({"rewrite": "my own words"} if at == 1 else {}))
    house.end()
    where = tasks.get_project(house.store, "talks")
    given = answers.read(house.store, "talks")
    known = tasks.load(house.store, project_name="talks")
    assert len(given) == 3 == len({each.task for each in given}) and {each.people for each in given} == {"live"}
    assert all(len(task.candidates) == 2 and set(task.producers) == {"kind", "curt"} for task in known.values())
    assert len({task.cluster for task in known.values()}) == 1, "all turns of a dialogue fall into one split"
    assert [each.revision for each in given] == [1, 1, 2], "the end is a revision of the last answer"
    (shown,) = dialogue.demonstrations(house.store, where)
    said = [each.content for each in shown.messages]
    assert said == ["one", "Gladly: one (1)", "two", "my own words", "three", "Gladly: three (5)"]
    assert shown.target == said[-1] and shown.tags["turns"] == 3 and len(shown.tags["rows"]) == 3
    assert shown.tags["people"] == "live" and shown.tags["licence"] == "not-stated"
    assert dialogue.demonstrations(house.store, where, "simulated") == []


def test_where_all_are_bad_the_message_is_asked_again(house):
    first = house.say("What?")
    house.judge(first.item, tiers=None, unrankable=[each.no for each in first.item.candidates], all_bad=True)
    now = dialogue.view(house.store, house.ana, "talks")
    assert now.messages == () and now.turns == 1 and now.item is None
    again = house.say("In other words: what?")
    assert texts(again) == ["In other words: what?"] and again.dialogue == first.dialogue
    house.judge(again.item)
    (shown,) = dialogue.demonstrations(house.store, tasks.get_project(house.store, "talks"))
    assert shown.messages[0].content == "In other words: what?" and shown.tags["turns"] == 1


def test_a_message_is_asked_once_and_a_turn_is_judged_before_the_next(house):
    first = house.say("Hello", key="the-same-key")
    calls = len(house.calls)
    again = house.say("Hello", key="the-same-key")
    assert again.item.slot == first.item.slot and len(house.calls) == calls
    with pytest.raises(DataError, match="not been judged"):
        house.say("And then?")
    with pytest.raises(DataError, match="not been judged"):
        house.end()
    assert len(tasks.load(house.store, project_name="talks")) == 1


def test_a_first_message_that_is_sent_twice_at_once_begins_one_dialogue(home):
    house, both = House(home), threading.Barrier(2)

    class Together(dialogue.Speakers):
        def answer(self, *given):
            both.wait(10)  # neither has stored anything yet
            return super().answer(*given)

    house.speakers, seen = Together(house.open), []
    threads = [threading.Thread(target=lambda: seen.append(house.say("Hello", key="the-same-key"))) for _ in "ab"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(seen) == 2 and seen[0].dialogue == seen[1].dialogue and seen[0].item.slot == seen[1].item.slot
    assert len(tasks.load(house.store, project_name="talks")) == 1
    house.store.close()


def test_nobody_sees_or_answers_a_dialogue_of_somebody_else(house):
    first = house.say("Mine")
    assert dialogue.view(house.store, house.ben, "talks").messages == ()
    with pytest.raises(DataError, match="no such dialogue of yours"):
        dialogue.view(house.store, house.ben, "talks", first.dialogue)
    assert api.claim(house.store, house.ben, api.Claim(project="talks")).items == []
    answer = api.Answer(slot=first.item.slot, epoch=first.item.epoch, key="by-somebody", tiers=[[0], [1]])
    assert api.submit(house.store, house.ben, api.Answers(answers=(answer,))).receipts[0].status == "stale"
    with pytest.raises(NotFound):
        dialogues.take(house.store, house.ben.id, first.item.task, 1000)
    visitor = people.create(house.store, "visitor", roles=["auditor"])
    with pytest.raises(api.Forbidden):
        house.say("Let me in", person=visitor)


def test_a_slow_generator_is_not_waited_for(tmp_path):
    house = House(tmp_path, generators=("kind", "slow"), timeout_s=0.3)
    now = house.say("Quick, please")
    assert [each.content for each in now.item.candidates] == ["Gladly: Quick, please (1)"]
    assert now.notes == ["An answer is missing: it did not answer within 0.3 seconds."]
    house.judge(now.item)  # one answer is no preference, and the conversation goes on from it
    assert texts(dialogue.view(house.store, house.ana, "talks"))[-1] == "Gladly: Quick, please (1)"
    house.slow.set()


@pytest.mark.parametrize(
    ("generators", "why"),
    [
        (("broken", "missing"), "the cable is cut|no such generator"),
        (("slow",), "did not answer within"),
        (("odd",), "it failed: RuntimeError"),
        (("vain", "vain"), "told which model wrote them"),
    ],
)
def test_where_nobody_answers_nothing_is_stored_and_it_can_be_sent_again(tmp_path, generators, why):
    house = House(tmp_path, generators=generators, timeout_s=0.3)
    now = house.say("Are you there?")
    assert now.item is None and now.messages == () and now.dialogue == ""
    assert re.search(why, now.problem) and "Send your message again" in now.problem
    assert not any(name in now.problem for name in generators)
    assert tasks.load(house.store, project_name="talks") == {}
    house.slow.set()


def test_equal_answers_are_shown_once_and_one_generator_may_answer_twice(tmp_path):
    house = House(tmp_path, generators=("kind", "twin"))
    now = house.say("Same?")
    assert len(now.item.candidates) == 1 and "shown as one" in now.notes[0]
    (task,) = tasks.load(house.store, project_name="talks").values()
    assert sorted(task.candidate_meta[0]["by"]) == ["kind", "twin"]
    several = House(tmp_path / "b", generators=("many",), candidates=3)
    several.open = None
    several.speakers = dialogue.Speakers(
        lambda name: FakeGenerator(("apples", "pears and plums", "a cherry tree"), name=name)
    )
    assert len(several.say("Fruit?").item.candidates) == 3


def test_a_strength_is_asked_of_two_answers_only(tmp_path):
    house = House(tmp_path, kind="strength", required=True)
    now = house.say("Where is the pier?")
    order = [[each.no] for each in now.item.candidates]
    answer = api.Answer(slot=now.item.slot, epoch=now.item.epoch, key="a-first-answer", tiers=order)
    assert "how much better" in api.submit(house.store, house.ana, api.Answers(answers=[answer])).receipts[0].error
    house.judge(now.item, tiers=order, values={"strength": "much"})
    assert answers.read(house.store, "talks")[0].value("strength") == 2.0
    alone = House(tmp_path / "alone", generators=("kind", "twin"), kind="strength", required=True)
    alone.judge(alone.say("Same?").item, tiers=[[0]])
    assert answers.read(alone.store, "talks")[0].value("strength") is None
    with pytest.raises(ValidationError, match="a dialogue of two answers"):
        House(tmp_path / "three", kind="strength", candidates=3)


def test_the_order_of_the_answers_tells_nothing(tmp_path):
    house = House(tmp_path, turns=200)
    first = 0
    for at in range(24):
        now = house.say(f"Question {at}")
        by_number = {each.no: each.content for each in now.item.candidates}
        first += by_number[0].startswith("Gladly")
        house.judge(now.item)
        if at % 8 == 7:
            house.end()
    assert 4 <= first <= 20


def test_limits_and_wrong_requests_are_one_clear_error(house, tmp_path):
    short = House(tmp_path / "short", turns=1)
    short.judge(short.say("one").item)
    with pytest.raises(DataError, match="at most 1 turns"):
        short.say("two")
    with pytest.raises(DataError, match="message is empty"):
        house.say("   ", key="a-long-key")
    with pytest.raises(DataError, match="nothing was chosen"):
        house.end()
    with pytest.raises(DataError, match="no such dialogue"):
        house.say("x", dialogue="other")
    status, told = routes.dispatch(
        house.store, house.lead, "POST", "/api/feedback/projects",
        {"name": "bad", "kind": "dialogue", "settings": {"dialogue": {"generators": []}}},
    )  # fmt: skip
    assert status == 422 and "generators" in str(told)
    api.create_project(house.store, house.lead, api.NewProject(name="ranks"))
    with pytest.raises(DataError, match="kind ranking"):
        dialogue.view(house.store, house.ana, "ranks")
    tasks.close_project(house.store, "talks", by="lead")
    with pytest.raises(DataError, match="the project is closed"):
        house.say("anybody?")


def test_a_skipped_turn_leaves_the_conversation_as_it_was(house):
    first = house.say("one")
    house.judge(first.item)
    second = house.say("two")
    skip = api.Answer(slot=second.item.slot, epoch=second.item.epoch, key="skip-it-now", status="skipped", reason="odd")
    api.submit(house.store, house.ana, api.Answers(answers=(skip,)))
    now = dialogue.view(house.store, house.ana, "talks")
    assert texts(now) == ["one", "Gladly: one (1)"] and now.turns == 2
    assert house.end(first.dialogue).ended
    (shown,) = dialogue.demonstrations(house.store, tasks.get_project(house.store, "talks"))
    assert shown.tags["turns"] == 1


def test_erasing_a_person_takes_what_they_said_in_dialogues(house):
    house.judge(house.say("My name is Ana Lee").item)
    other = house.say("Hello", person=house.ben)
    words = erasure.words_of(house.store, person=house.ana.id)
    erasure.erase(house.store, words, person=house.ana.id, by="lead")
    left = tasks.load(house.store, project_name="talks")
    assert [task.id for task in left.values() if task.messages] == [other.item.task]
    assert dialogue.demonstrations(house.store, tasks.get_project(house.store, "talks")) == []


def test_nobody_else_is_asked_about_a_turn_even_of_an_erased_dialogue(house):
    task = house.say("My name is Ana Lee").item.task
    erasure.erase(house.store, erasure.words_of(house.store, person=house.ana.id), person=house.ana.id, by="lead")
    for ask in (lambda: oversight.reopen(house.store, task, "lead"),
                lambda: oversight.assign(house.store, task, house.ben.id, "lead")):  # fmt: skip
        with pytest.raises(DataError, match="belongs to whoever speaks"):
            ask()
    assert tasks.load(house.store, [task])[task].state == "closed"


def test_the_first_message_of_an_ended_dialogue_is_not_asked_again(house):
    new = NewTurn(message="one", key="first-key-1")
    first = dialogue.say(house.store, house.ana, "talks", new, house.speakers)
    house.judge(first.item)
    assert house.end(first.dialogue).ended
    asked = len(house.calls)
    again = dialogue.say(house.store, house.ana, "talks", new, house.speakers)
    assert again.ended and again.dialogue == first.dialogue and len(house.calls) == asked
    assert dialogue.say(house.store, house.ana, "talks", NewTurn(message="one", key="first-key-2"), house.speakers).item


def test_a_system_prompt_stands_before_everything(tmp_path):
    house = House(tmp_path, system="You are the town's desk.")
    house.judge(house.say("Hi").item)
    again = house.say("More")
    assert [each.role for each in again.messages] == ["system", "user", "assistant", "user"]
    assert again.messages[0] == Message(role="system", content="You are the town's desk.")


def test_dialogues_become_preferences_and_demonstrations_of_a_life(tmp_path):
    root = Root(tmp_path / "life").create()
    house = House(root.path)
    for at in range(12):
        house.judge(house.say(f"Question {at} of a long list of questions").item)
        if at % 3 == 2:
            house.end()
    house.say("one that waits")
    collection = run_stage(collect, root, config={"take": "talks"})
    assert collection.metrics["tasks"] == 13 and collection.metrics["expected"] == 12
    shown = list(read_jsonl(collection.file("demonstrations.jsonl"), Example))
    assert len(shown) == 4 and all(each.tags["turns"] == 3 for each in shown)
    needs = {"needs": {"per_task": 1}, "validation": 0, "test": 0.2}
    joined = run_stage(preferences, root, config=needs, inputs={"collection": collection}, simulated="refuse")
    rows = list(read_jsonl(joined.file("preferences.jsonl"), Preference))
    assert len(rows) == 12 and not joined.manifest.simulated and joined.manifest.licences == ["not-stated"]
    best = [row.candidates[row.tiers[0][0]].content for row in rows]
    assert all(text.startswith("Gladly") for text in best) and {row.tags["people"] for row in rows} == {"live"}
    splits = {}
    for row in rows:
        splits.setdefault(row.tags["cluster"], set()).add(row.tags["split"])
    assert len(splits) == 4 and all(len(each) == 1 for each in splits.values())
    assert run_stage(collect, root, config={"take": "talks"}).id == collection.id
    house.judge(dialogue.view(house.store, house.ana, "talks").item)
    assert run_stage(collect, root, config={"take": "talks"}).metrics["expected"] == 13, "it has grown"
    with pytest.raises(NotFound, match="no project 'other'"):
        run_stage(collect, root, config={"take": "other"})


def test_a_project_made_at_the_console_is_taken_as_it_is(house, tmp_path):
    root = house.root
    api.create_project(house.store, house.lead, api.NewProject(name="ranks", per_task=1))
    new = [
        api.NewTask(key=str(n), kind="ranking", messages=(Message(role="user", content=f"question {n}"),),
                    candidates=({"content": "good"}, {"content": "bad"}))
        for n in range(8)
    ]  # fmt: skip
    api.add_tasks(house.store, house.lead, "ranks", new)
    collection = run_stage(collect, root, config={"take": "ranks"})
    with pytest.raises(Waiting):
        run_stage(preferences, root, inputs={"collection": collection})
    for item in api.claim(house.store, house.ben, api.Claim(project="ranks", count=8)).items:
        house.judge(item, person=house.ben, tiers=[[0], [1]])
    joined = run_stage(preferences, root, inputs={"collection": run_stage(collect, root, config={"take": "ranks"})})
    assert sum(joined.metrics["rows"].values()) == 8
