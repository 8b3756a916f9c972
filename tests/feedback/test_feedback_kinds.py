"""Each kind of task through the API: what its answers hold, what is refused and why, and that N stays exactly N."""

from __future__ import annotations

import random

import pytest

from tutelage.core.records import Message
from tutelage.feedback import api, routes
from tutelage.store import answers, engine, people, tasks, taxonomies
from tutelage.store.answers import WHOLE

TREE = {
    "nodes": [
        {"key": "harm", "title": "Harm", "severity": 2, "children": [
            {"key": "threat", "severity": 3}, {"key": "insult", "title": "Insult"}]},
        {"key": "spam"},
    ]
}  # fmt: skip
STRENGTHS = ["slightly better", "better", "much better"]


def ask(**given):
    return {"per_candidate": False, **given}


FORMS = {
    "ranking": {},
    "pair": {"questions": [ask(key="strength", kind="strength", choices=STRENGTHS)]},
    "scoring": {
        "questions": [
            ask(key="right", scale=[1, 5], anchors={"1": "wrong", "5": "right"}, per_candidate=True),
            ask(key="tone", kind="choice", choices=["warm", "cold"], per_candidate=True),
            ask(key="faults", kind="tags", per_candidate=True, required=False),
        ],
        "taxonomy": TREE,
    },
    "tag": {
        "questions": [ask(key="categories", kind="tags"), ask(key="where", kind="spans", required=False)],
        "taxonomy": TREE,
    },
    "rewrite": {},
}


class World:
    def __init__(self, root, kind, *, form=None, candidates=2, tasks_=2, per_task=1, people_=2):
        self.store = engine.open(root)
        self.lead = people.create(self.store, "lead", roles=["lead"])
        self.crew = people.create_many(self.store, [f"p{n}" for n in range(people_)])
        self.kind = kind
        api.create_project(self.store, self.lead, self.project(form or FORMS[kind], per_task))
        new = [
            api.NewTask(
                key=f"t{n}",
                kind=kind,
                messages=(
                    Message(role="user", content=f"question {n}"),
                    Message(role="user", content="😀 write to anna@example.org, now"),
                ),
                candidates=tuple(
                    api.NewCandidate(content=f"answer {n}.{c}, bob@example.org") for c in range(candidates)
                ),
            )
            for n in range(tasks_)
        ]
        self.ids = api.add_tasks(self.store, self.lead, "work", new)

    def project(self, form, per_task=1):
        return api.NewProject.model_validate({"name": "work", "kind": self.kind, "form": form, "per_task": per_task})

    def claim(self, who=0):
        return api.claim(self.store, self.crew[who], api.Claim(project="work")).items[0]

    def say(self, item, who=0, key="", **fields):
        given = {"slot": item.slot, "epoch": item.epoch, "key": key or f"key-{item.slot}", **fields}
        return api.submit(self.store, self.crew[who], api.Answers.model_validate({"answers": [given]})).receipts[0]

    def read(self, **options):
        return answers.read(self.store, "work", **options)


def test_a_pair_has_a_strength_and_keeps_the_order_it_was_shown_in(tmp_path):
    world = World(tmp_path, "pair", tasks_=1)
    item = world.claim()
    told = world.say(item, tiers=[[1], [0]])
    assert told.status == "refused" and "how much better" in told.error and "slightly better" in told.error
    assert "none of the strengths" in world.say(item, tiers=[[1], [0]], values={"strength": "hugely"}).error
    assert "neither one is better" in world.say(item, tiers=[[0, 1]], values={"strength": "better"}).error
    assert world.say(item, tiers=[[1], [0]], values={"strength": "better"}).status == "stored"
    kept = world.read()[0]
    assert kept.value("strength") == 2.0 and kept.tiers == ((1,), (0,))
    assert kept.shown == tuple(each.no for each in item.candidates)
    assert world.say(item, key="again-a-tie", tiers=[[0, 1]]).status == "stored", "a tie has no strength"


def test_nine_and_more_candidates_can_be_ranked_with_ties(tmp_path):
    world = World(tmp_path, "ranking", candidates=14, tasks_=1)
    item = world.claim()
    tiers = [[0, 1], list(range(2, 13)), [13]]
    assert world.say(item, tiers=tiers).status == "stored"
    assert [list(tier) for tier in world.read()[0].tiers] == tiers


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A task of a kind in somebody's hands; tests that use it store nothing."""
    made = {}

    def one(kind):
        if kind not in made:
            world = World(tmp_path_factory.mktemp(kind), kind, tasks_=1)
            made[kind] = (world, world.claim())
        return made[kind]

    return one


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("ranking", {"tiers": [[0], [], [1]]}, "tier 1 is empty"),
        ("ranking", {"tiers": [[0]]}, "candidate 1 is not ranked"),
        ("ranking", {"tiers": [[0], [1], [0]]}, "candidate 0 stands in two places"),
        ("ranking", {"tiers": [[0], [1], [7]]}, "there is no candidate 7"),
        ("ranking", {"tiers": [[0], [-1]]}, "there is no candidate -1"),
        ("ranking", {"tiers": [[0, 1]], "flags": {"0": ["x" * 200]}}, "at most 50 flags"),
        ("ranking", {"tiers": [[0, 1]], "flags": {"5": ["rude"]}}, "no candidate 5"),
        ("ranking", {"tiers": [[0, 1]], "rewrite": "better", "rewritten": 4}, "no candidate 4"),
        ("ranking", {"tiers": [[0, 1]], "rewrite": "a\x00b", "rewritten": 0}, "cannot be stored"),
        ("scoring", {"scores": {"right": {"0": 3}}}, "candidate 1 has no score"),
        ("scoring", {"scores": {"right": {"0": 3, "1": 6}}}, "6 is outside the scale 1 to 5"),
        ("scoring", {"scores": {"right": {"0": float("nan"), "1": 1}}}, "nan is outside"),
        ("scoring", {"scores": {"right": {"0": 3, "1": 3}}}, "candidate 0 has no answer"),
        ("scoring", {"picks": {"tone": {"0": ["warm", "cold"]}}}, "choose one"),
        ("scoring", {"picks": {"tone": {"0": ["blue"]}}}, "none of the choices"),
        ("scoring", {"picks": {"right": {"0": ["5"]}}}, "does not ask this"),
        ("scoring", {"values": {"tone": "warm"}}, "does not ask this"),
        ("scoring", {"flags": {"0": ["boring"]}}, "no node 'boring'"),
        ("tag", {}, "is not answered"),
        ("tag", {"values": {"categories": ["weather"]}}, "no node 'weather'"),
        ("tag", {"values": {"categories": [3]}}, "no node '3'"),
        ("tag", {"values": {"where": []}}, "does not ask this"),
        ("tag", {"spans": [{"field": "prompt", "start": 3, "end": 3, "label": "spam"}]}, "go forward"),
        ("tag", {"spans": [{"field": "prompt", "start": 0, "end": 24, "label": "spam"}]}, "behind the end of the text"),
        ("rewrite", {"rewrite": "Better.", "spans": [{"start": 0, "end": 1, "label": "x"}]}, "asks for no spans"),
        ("tag", {"spans": [{"field": "prompt:2", "start": 0, "end": 1, "label": "spam"}]}, "no message 2"),
        ("tag", {"spans": [{"candidate": 2, "start": 0, "end": 1, "label": "spam"}]}, "no candidate 2"),
        ("tag", {"spans": [{"field": "prompt", "start": 0, "end": 1, "label": "weather"}]}, "no node 'weather'"),
        ("rewrite", {}, "a rewrite is missing"),
        ("rewrite", {"rewrite": "  ", "rewritten": 0}, "is empty"),
        ("rewrite", {"rewrite": "better"}, "say which candidate"),
        ("rewrite", {"rewrite": "better", "rewritten": 0, "as_is": True}, "either rewritten or good"),
        ("rewrite", {"rewrite": "x" * 10_000_000, "rewritten": 0}, "at most 20,000"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_stored(held, kind, fields, says):
    world, item = held(kind)
    full = {
        "tag": {"values": {"categories": []}},
        "scoring": {"scores": {"right": {"0": 1, "1": 1}}, "picks": {"tone": {"0": ["warm"], "1": ["warm"]}}},
    }
    told = world.say(item, **(full.get(kind, {}) if "flags" in fields or "spans" in fields else {}) | fields)
    assert (told.status, world.read(status=None)) == ("refused", []) and says in told.error


def test_a_number_too_large_for_a_float_is_refused(tmp_path):
    world = World(tmp_path, "tag", form={"questions": [ask(key="much", scale=[0, 9])]}, tasks_=1)
    assert world.say(world.claim(), values={"much": 10**400}).status == "refused"


def test_tags_imply_their_parents_and_spans_point_into_the_masked_text(tmp_path):
    world = World(tmp_path, "tag", tasks_=1)
    item = world.claim()
    assert item.taxonomy_version == 1 and item.taxonomy.nodes[0].children[0].key == "threat"
    text = item.messages[-1].content
    assert text == "😀 write to [EMAIL], now"
    spans = [
        {"field": "prompt", "start": 2, "end": 7, "label": "threat"},
        {"field": "candidate", "candidate": 1, "start": 0, "end": 6, "label": "spam"},
        {"field": "prompt:0", "start": 0, "end": 10, "label": "spam"},
    ]
    assert world.say(item, values={"categories": ["threat"]}, spans=spans).status == "stored"
    kept = world.read()[0]
    assert kept.value("categories") == ["harm", "threat"]
    assert kept.spans == (
        ("candidate", 1, 0, 6, "spam"), ("prompt:0", WHOLE, 0, 10, "spam"), ("prompt:1", WHOLE, 2, 7, "threat")
    )  # fmt: skip
    assert text[2:7] == "write", "characters are code points"


def test_none_applies_is_an_answer_and_no_answer_is_not(tmp_path):
    world = World(tmp_path, "tag", tasks_=1)
    assert world.say(world.claim(), values={"categories": []}).status == "stored"
    assert world.read()[0].value("categories") == []


def test_scores_choices_tags_and_flags_of_each_response_come_in_one_answer(tmp_path):
    world = World(tmp_path, "scoring", tasks_=1)
    given = {
        "scores": {"right": {"0": 5, "1": 2}},
        "picks": {"tone": {"0": ["warm"], "1": ["cold"]}, "faults": {"1": ["insult"]}},
        "flags": {"1": ["threat"]},
    }
    assert world.say(world.claim(), **given).status == "stored"
    kept = {(each.question, each.candidate): each.value for each in world.read()[0].values if each.value is not None}
    assert kept == {
        ("tone", 0): "warm", ("tone", 1): "cold", ("faults", 1): ["harm", "insult"], ("flag", 1): ["harm", "threat"]
    }  # fmt: skip


def test_a_rewrite_names_what_it_rewrote(tmp_path):
    world = World(tmp_path, "rewrite", tasks_=2)
    item = world.claim()
    shown = {each.no: each.content for each in item.candidates}
    assert "as it was" in world.say(item, rewrite=shown[1] + "\n", rewritten=1).error
    assert world.say(item, rewrite="A better answer.", rewritten=1).status == "stored"
    assert world.say(world.claim(), key="good-as-it-is", as_is=True, rewritten=0).status == "stored"
    first, second = world.read()
    assert [(each.question, each.candidate, each.text) for each in first.values] == [("rewrite", 1, "A better answer.")]
    assert [(each.question, each.candidate, each.value) for each in second.values] == [("as_is", 0, True)]


def test_a_prompt_alone_can_be_answered(tmp_path):
    world = World(tmp_path, "rewrite", candidates=0, tasks_=1)
    assert world.say(world.claim(), rewrite="An answer.").status == "stored"
    assert world.read()[0].value("rewrite") == "An answer."


@pytest.mark.parametrize(
    ("kind", "form", "says"),
    [
        ("scoring", {"questions": [ask(key="a"), ask(key="a")]}, "the name is taken"),
        ("scoring", {"questions": [ask(key="all_bad")]}, "the name is taken"),
        ("scoring", {"questions": [ask(key="a", kind="text", per_candidate=True)]}, "about the whole task"),
        ("tag", {"questions": [ask(key="a", kind="tags")]}, "needs a taxonomy"),
        ("tag", {"questions": [ask(key="a", kind="spans")]}, "needs choices"),
        ("tag", {"questions": [ask(key="a", kind="choices", choices=["x", "x"])]}, "words of its own"),
        ("ranking", {"questions": [ask(key="a", kind="strength", choices=["x"])]}, "only a pair"),
        ("tag", {"taxonomy": {"nodes": [{"key": "a"}, {"key": "a"}]}}, "stands twice"),
    ],
)
def test_a_form_nobody_could_answer_is_refused(held, kind, form, says):
    world, _ = held("ranking")
    body = {"name": "x", "kind": kind, "form": form}
    status, told = routes.dispatch(world.store, world.lead, "POST", "/api/feedback/projects", body)
    assert status == 422 and says in told["message"], told


# versions


def test_tasks_keep_the_taxonomy_they_were_made_under(tmp_path):
    world = World(tmp_path, "tag", tasks_=2)
    form = FORMS["tag"] | {"taxonomy": {"nodes": [{"key": "harm"}, {"key": "advert"}, {"key": "fraud"}]}}
    status, told = routes.dispatch(
        world.store, world.lead, "POST", "/api/feedback/projects", {"name": "work", "kind": "tag", "form": form}
    )
    assert status == 422 and "'threat' of the version before is gone" in told["message"]
    moved = {"threat": ["harm"], "insult": ["harm"], "spam": ["advert", "fraud"]}
    form["taxonomy"]["migration"] = moved
    made = api.create_project(world.store, world.lead, world.project(form))
    assert made.form_version == 2 and made.form.taxonomy.migration["spam"] == ("advert", "fraud")
    assert api.create_project(world.store, world.lead, world.project(form)).form_version == 2, "the same is no version"
    old = world.claim()
    assert (old.form_version, old.taxonomy_version) == (1, 1)
    assert world.say(old, values={"categories": ["spam"]}).status == "stored"
    newer = api.NewTask(key="new", kind="tag", messages=(Message(role="user", content="x"),))
    api.add_tasks(world.store, world.lead, "work", [newer])
    world.say(world.claim(), values={"categories": []})
    fresh = world.claim()
    assert (fresh.form_version, fresh.taxonomy_version) == (2, 2)
    assert "no node 'spam'" in world.say(fresh, values={"categories": ["spam"]}).error
    assert world.say(fresh, values={"categories": ["fraud"]}).status == "stored"
    project = tasks.get_project(world.store, "work")
    trees = taxonomies.of_forms(world.store, [each.form for each in world.read()])
    assert [trees[each.form].version for each in world.read()] == [1, 1, 2]
    assert sorted(taxonomies.versions(world.store, project.id)) == [1, 2]
    with pytest.raises(Exception, match=r"append|refuse"), world.store.write() as connection:
        connection.exec_driver_sql("UPDATE taxonomy SET version = 9")


def test_an_edit_after_the_form_changed_is_checked_under_the_old_form(tmp_path):
    world = World(tmp_path, "scoring", tasks_=1)
    item = world.claim()
    full = {"scores": {"right": {"0": 5, "1": 2}}, "picks": {"tone": {"0": ["warm"], "1": ["cold"]}}}
    world.say(item, **full)
    api.create_project(world.store, world.lead, world.project({"questions": [ask(key="new", per_candidate=True)]}))
    again = api.held_item(world.store, world.crew[0], item.slot)
    assert [each.key for each in again.questions] == ["right", "tone", "faults"]
    full["scores"]["right"]["0"] = 1
    assert world.say(again, key="a-correction", **full).status == "stored"
    assert "does not ask this" in world.say(again, key="under-the-new", scores={"new": {"0": 1, "1": 1}}).error
    assert [each.form for each in world.read(newest=False)] == [world.read()[0].form] * 2


# taking back


def test_a_withdrawn_answer_stays_on_record_and_the_place_is_ones_own_again(tmp_path):
    world = World(tmp_path, "ranking", tasks_=1)
    item = world.claim()
    world.say(item, tiers=[[0], [1]])
    assert tasks.load(world.store)[item.task].state == "done"
    assert world.say(item, key="take-it-back", status="withdrawn").status == "stored"
    assert world.say(item, key="take-it-back", status="withdrawn").status == "repeated"
    assert world.read() == [] and answers.how_many(world.store, ["work"]) == {}
    assert answers.tallies(world.store, "work") == []
    assert tasks.load(world.store)[item.task].state == "open"
    again = world.claim()
    assert again.slot == item.slot and again.epoch == item.epoch + 1
    late = world.say(item, key="from-an-old-page", tiers=[[1], [0]])
    assert late.status == "stale"
    assert world.say(again, key="the-new-answer", tiers=[[1], [0]]).status == "stored"
    every = world.read(newest=False, status=None)
    assert [(each.revision, each.status, each.reason) for each in every] == [
        (1, "submitted", ""), (2, "withdrawn", "undone"), (3, "submitted", "")
    ]  # fmt: skip
    assert world.read()[0].tiers == ((1,), (0,)) and answers.how_many(world.store, ["work"]) == {item.task: 1}


def test_what_was_withdrawn_and_given_back_goes_to_somebody_else(tmp_path):
    world = World(tmp_path, "ranking", tasks_=1)
    item = world.claim()
    world.say(item, tiers=[[0], [1]])
    world.say(item, key="take-it-back", status="withdrawn")
    assert api.give_back(world.store, world.crew[0], item.slot, item.epoch + 1)
    other = world.claim(1)
    assert other.slot == item.slot
    assert world.say(other, 1, key="somebody-else", tiers=[[0, 1]]).status == "stored"
    assert [each.person for each in world.read()] == [world.crew[1].id]
    assert world.say(item, key="take-it-again", status="withdrawn").status == "stale"


def test_nothing_answered_cannot_be_withdrawn(tmp_path):
    world = World(tmp_path, "ranking", tasks_=1)
    told = world.say(world.claim(), status="withdrawn")
    assert told.status == "stale" and "could be taken back" in told.error


def test_a_skip_can_be_undone_until_somebody_else_has_begun(tmp_path):
    world = World(tmp_path, "ranking", tasks_=1)
    item = world.claim()
    for turn in range(8):  # more often than there are extra places
        assert world.say(item, key=f"skip-{turn}-it", status="skipped", reason="later").status == "stored"
        assert world.say(item, key=f"undo-{turn}-it", status="withdrawn").status == "stored"
        assert api.claim(world.store, world.crew[1], api.Claim(project="work")).items == []
        item = world.claim()
    world.say(item, key="skip-at-last", status="skipped", reason="later")
    other = world.claim(1)
    told = world.say(item, key="too-late-now", status="withdrawn")
    assert told.status == "stale" and "somebody else was asked instead" in told.error
    assert world.say(item, key="too-late-too", tiers=[[0], [1]]).status == "stale"
    assert world.say(item, key="another-reason", status="skipped", reason="upsetting").status == "stored"
    assert world.say(other, 1, tiers=[[0], [1]]).status == "stored"
    assert answers.how_many(world.store, ["work"]) == {item.task: 1}


def test_an_answer_can_become_a_skip_and_somebody_else_is_asked(tmp_path):
    world = World(tmp_path, "ranking", tasks_=1)
    item = world.claim()
    world.say(item, tiers=[[0], [1]])
    assert world.say(item, key="better-skip", status="skipped", reason="I know the author").status == "stored"
    assert tasks.load(world.store)[item.task].state == "open" and world.read() == []
    assert world.say(world.claim(1), 1, tiers=[[0], [1]]).status == "stored"
    assert tasks.load(world.store)[item.task].state == "done"


@pytest.mark.parametrize("seed", range(6))
def test_whatever_people_do_each_task_ends_with_exactly_n(tmp_path, seed):
    """Claims, answers, skips, corrections, withdrawals in a random order; then all work until nothing is left."""
    world = World(tmp_path, "ranking", tasks_=4, per_task=2, people_=6)
    stream, met = random.Random(seed), []
    order = {"tiers": [[0], [1]]}

    def act(who, item, status, at):
        fields = order if status == "submitted" else {"reason": "?"}
        return world.say(item, who, key=f"answer-{seed}-{at}", status=status, **fields)

    for at in range(70):
        who = stream.randrange(6)
        if met and stream.random() < 0.5:
            who, item = stream.choice(met)
            row = api.desk.held(world.store, item.slot)
            item = item.model_copy(update={"epoch": row.lease_epoch})
            act(who, item, stream.choice(["submitted", "withdrawn", "skipped", "withdrawn"]), at)
        else:
            for item in api.claim(world.store, world.crew[who], api.Claim(project="work")).items:
                met.append((who, item))
                act(who, item, stream.choice(["submitted", "submitted", "submitted", "skipped"]), at)
        assert max(answers.how_many(world.store, ["work"]).values(), default=0) <= 2
    for at in range(40):
        for who in range(6):
            for item in api.claim(world.store, world.crew[who], api.Claim(project="work", count=9)).items:
                act(who, item, "submitted", f"end-{who}-{item.slot}-{at}")
    kept = world.read()
    counts = answers.how_many(world.store, ["work"])
    for id, task in tasks.load(world.store).items():
        said = {each.person for each in kept if each.task == id}
        assert len(said) == counts.get(id, 0)
        assert (task.state, len(said)) == ("done", 2) or (task.state == "stuck" and len(said) < 2), task.state
