"""Taxonomies: what a tag implies, what a new version must say, old labels under a newer version."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tutelage.core.errors import DataError
from tutelage.feedback.taxonomy import Node, Taxonomy, asked, migrated


def tree(**branches):
    """Branches as `name=("child", ...)`."""
    return tuple(Node(key=name, children=tuple(Node(key=child) for child in kids)) for name, kids in branches.items())


FIRST = Taxonomy(nodes=tree(harm=("threat", "insult", "slur"), spam=()))
SECOND = Taxonomy(
    nodes=(
        Node(key="harm", children=(Node(key="violence", children=(Node(key="threat"),)), Node(key="abuse"))),
        Node(key="commerce", children=(Node(key="advert"), Node(key="scam"))),
    ),
    migration={"insult": ("abuse",), "slur": ("abuse",), "spam": ("advert", "scam")},
)
THIRD = Taxonomy(
    nodes=(Node(key="harm", children=(Node(key="menace"),)), Node(key="commerce"), Node(key="fraud")),
    migration={"threat": ("menace",), "violence": ("menace",), "abuse": (), "advert": ("commerce",),
               "scam": ("fraud",)},
)  # fmt: skip
VERSIONS = {1: FIRST, 2: SECOND, 3: THIRD}


def test_choosing_a_node_implies_all_above_it_in_the_order_of_the_tree():
    assert SECOND.closed(["advert", "threat"]) == ["harm", "violence", "threat", "commerce", "advert"]
    assert SECOND.closed([]) == []
    with pytest.raises(DataError, match="no node 'insult'"):
        SECOND.closed(["insult"])


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"nodes": tree(a=("b",), b=())}, "stands twice"),
        ({"nodes": ()}, "at least 1 item"),
        ({"nodes": tree(a=()), "migration": {"x": ("y",)}}, "does not hold"),
        ({"nodes": ({"key": "Ä"},)}, "should match pattern"),
        ({"nodes": ({"key": "a", "severity": 9},)}, "less than or equal to 3"),
    ],
)
def test_a_tree_that_says_two_things_is_refused(made, says):
    with pytest.raises(ValidationError, match=says):
        Taxonomy.model_validate(made)


def test_a_tree_of_any_depth_is_refused_beyond_its_limit_without_a_traceback():
    node = {"key": "n0"}
    for at in range(1, 40):
        node = {"key": f"n{at}", "children": [node]}
    with pytest.raises(ValidationError, match="deeper than 12 levels"):
        Taxonomy.model_validate({"nodes": [node]})


def test_a_new_version_says_what_became_of_every_node():
    SECOND.follows(FIRST)
    THIRD.follows(SECOND)
    forgets = Taxonomy(nodes=SECOND.nodes, migration={"insult": ("abuse",)})
    with pytest.raises(DataError, match="'slur' of the version before is gone"):
        forgets.follows(FIRST)
    with pytest.raises(DataError, match="no such node"):
        Taxonomy(nodes=FIRST.nodes, migration={"nothing": ("harm",)}).follows(FIRST)


def test_old_labels_are_read_under_the_newest_version():
    two = {1: FIRST, 2: SECOND}
    assert migrated(["threat"], 1, two).keys == ["harm", "violence", "threat"], "the new place implies more"
    assert migrated(["insult"], 1, two).keys == migrated(["slur"], 1, two).keys == ["harm", "abuse"], "merged"
    split = migrated(["spam"], 1, two)
    assert split.keys == ["commerce"] and split.ambiguous == {"spam": ("advert", "scam")}
    assert migrated(["violence"], 2, two).keys == ["harm", "violence"], "labels of the newest version stay as they are"


def test_a_chain_of_versions_keeps_what_is_certain():
    assert migrated(["threat"], 1, VERSIONS).keys == ["harm", "menace"]
    gone = migrated(["insult"], 1, VERSIONS)
    assert gone.keys == ["harm"] and gone.gone == ("insult",)
    split = migrated(["spam"], 1, VERSIONS)
    assert split.keys == [] and split.ambiguous == {"spam": ("commerce", "fraud")}, "the parts have nothing in common"
    chosen = migrated(["scam"], 2, VERSIONS)
    assert chosen.keys == ["commerce", "fraud"] and not chosen.ambiguous, "what was implied then still holds"


def test_a_split_that_the_person_had_answered_finer_is_not_ambiguous():
    old = Taxonomy(nodes=tree(spam=("pills",)))
    new = Taxonomy(nodes=tree(advert=("pills",), scam=()), migration={"spam": ("advert", "scam")})
    read = migrated(["pills"], 1, {1: old, 2: new})
    assert read.keys == ["advert", "pills"] and read.ambiguous == {}


def test_what_could_be_chosen_then():
    assert asked(1, VERSIONS) == ["harm", "menace", "commerce", "fraud"]
    assert asked(3, {3: THIRD}) == ["harm", "menace", "commerce", "fraud"]
    newer = Taxonomy(nodes=(*FIRST.nodes, Node(key="new")))
    assert "new" not in asked(1, {1: FIRST, 2: newer}), "nobody was asked about a node that did not exist"
