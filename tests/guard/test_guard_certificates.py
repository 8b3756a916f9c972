"""Certificates in force: dated, a tenant's own, with a band to abstain in, expired when traffic has drifted."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from guard_house import label_rows, seal
from scipy import stats

from tutelage.core.artifact import Root
from tutelage.core.config import build
from tutelage.core.errors import ConfigError
from tutelage.core.records import Verdict
from tutelage.core.stage import run_stage
from tutelage.guard.opened import guard_of
from tutelage.guard.policy import Guard, Policy
from tutelage.guard.written import Category, PolicyFile, Rule, Taxonomy, When, Where
from tutelage.judge.certificate import Certificate, band, certify, drifted
from tutelage.judge.classifier import ClassifierJudge, classifier

TAXONOMY = Taxonomy(categories={"crime": Category()})
RULE = Rule(id="r", when=When(direction=("input",)), category="crime", target_fpr=0.01, action="block")


def made(n: int = 4000, tenant: str = "", shift: float = 0.0, seed: int = 0) -> list[Certificate]:
    """Certificates of one head for three rates."""
    scores = np.clip(np.random.default_rng(seed).random(n) * 0.5 + shift, 0, 1)
    return [
        certify(scores.tolist(), category="crime", direction="input", target=target, tenant=tenant)
        for target in (0.001, 0.01, 0.05)
    ]


def policy(certificates: Sequence[Certificate], *rules: Rule, **more: object) -> Policy:
    file = PolicyFile.model_validate({"rules": [each.model_dump() for each in rules or (RULE,)], **more})
    return Policy(file, TAXONOMY, [Guard("g", {"input": ["crime"]}, certificates)])


def decided(asked: Policy, score: float, tenant: str = "") -> tuple[str, str]:
    said = asked.decide(Where("input", tenant=tenant), [Verdict(judge="g", scores={"crime": score})])
    return said.action, "; ".join(said.reasons)


def test_a_text_that_the_guard_cannot_tell_goes_to_people() -> None:
    certificates = made()
    found = band(certificates)
    assert found and found.low == certificates[2].threshold and found.high == certificates[0].threshold
    one, wide = certificates[1].threshold, certificates[2].threshold
    assert one is not None and wide is not None
    asked = policy(certificates, RULE.model_copy(update={"unsure": "review"}))
    for score, action in ((one + 1e-3, "block"), ((one + wide) / 2, "review"), (wide - 1e-3, "allow")):
        assert decided(asked, score)[0] == action
    assert decided(asked, (one + wide) / 2)[1].startswith("r: crime 0.4")
    assert decided(policy(certificates), (one + wide) / 2)[0] == "allow", "without the key nothing changes"


def test_to_abstain_needs_a_band_and_a_certificate_for_its_lower_end() -> None:
    unsure = RULE.model_copy(update={"unsure": "review"})
    with pytest.raises(ConfigError, match="no abstain band"):
        policy(made()[1:2], unsure)
    with pytest.raises(ConfigError, match="no certificate says"):
        policy(made(), unsure, defaults={"max_bound": 0.02})  # 5% of the harmless would be withheld
    flags = RULE.model_copy(update={"unsure": "flag"})
    assert decided(policy(made(), flags, defaults={"max_bound": 0.02}), 0.48)[0] == "flag"
    with pytest.raises(ConfigError, match="personal data are there or not"):
        build(Rule, {"id": "p", "pii": "all", "unsure": "review"})


def test_an_expired_certificate_may_flag_and_never_stop() -> None:
    certificates = made()
    unsure = RULE.model_copy(update={"unsure": "review"})
    asked = policy(certificates, unsure, expired=[certificates[1].id])
    action, why = decided(asked, 0.9)
    assert action == "flag" and "certificate expired" in why and why.startswith("r: crime 0.900")
    assert decided(asked, 0.48)[0] == "flag", "nor does its band withhold a text"
    assert [row["expired"] for row in asked.certified()] == [True]
    assert decided(policy(certificates, unsure, expired=[certificates[0].id]), 0.9)[0] == "block", "another one expired"
    own = Rule(id="r", when=When(direction=("input",)), category="crime", threshold=0.499, action="block")
    every = [each.id for each in certificates]
    assert decided(policy(certificates, own, expired=every[:1]), 0.9)[0] == "block", "another one vouches for it"
    assert decided(policy(certificates, own, expired=every), 0.9)[0] == "flag"


def test_a_tenants_own_threshold_takes_the_place_of_everybodys() -> None:
    own = [each for each in made(2000, "acme", 0.2, seed=1) if each.certified]
    asked = policy([*made(), *own])
    assert decided(asked, 0.6)[0] == "block" and decided(asked, 0.6, "acme")[0] == "allow"
    assert decided(asked, 0.6, "other")[0] == "block" and decided(asked, 0.75, "acme")[0] == "block"
    assert [row["tenant"] for row in asked.certified("acme")] == ["acme"]
    assert made()[0].id != own[0].id


def test_what_is_in_force_is_stated_with_all_heads_together() -> None:
    asked = policy(made())
    (row,) = asked.certified()
    assert row["rule"] == "r" and row["n"] == 4000 and 0 < row["bound"] <= 0.01 and len(row["data"]) == 64
    whole = asked.joint("input")
    assert whole.high is not None and whole.high >= row["bound"] and asked.joint("output").high is None
    assert asked.joint("input", "acme") == whole


def test_a_date_changes_no_name() -> None:
    plain = made()[0]
    dated = plain.model_copy(update={"at": "2026-11-27T10:00:00Z"})
    assert dated.id == plain.id != plain.model_copy(update={"tenant": "acme"}).id


def test_drift_is_called_as_seldom_as_it_says_and_found_where_it_is() -> None:
    certificate = made(2000)[1]
    assert certificate.sure is not None
    dice = np.random.default_rng(3)
    false = sum(drifted(certificate, int(dice.binomial(500, certificate.sure)), 500) for _ in range(1000))
    assert false <= 50 + 3 * 7
    assert sum(drifted(certificate, int(dice.binomial(500, 5 * certificate.sure)), 500) for _ in range(100)) > 95
    assert not drifted(certificate, 0, 0) and drifted(certificate, 500, 500)
    exact = stats.beta.ppf(0.05, 12, 500 - 12 + 1)
    assert drifted(certificate, 12, 500) == (exact > certificate.sure)
    with pytest.raises(ValueError, match="struck must be"):
        drifted(certificate, 3, 2)


def test_labels_that_name_a_tenant_certify_its_own_and_the_artifact_dates_them(tmp_path: Path) -> None:
    root, dice = Root(tmp_path).create(), random.Random(1)
    rows = label_rows(count=3000)
    for each in rows:
        each.tags["tenant"] = "acme" if dice.random() < 0.5 else ""
    labels = seal(root, "labels", {"labels.jsonl": rows})
    artifact = run_stage(classifier, root, config={"bits": 13, "iterations": 30}, inputs={"labels": [labels]})
    judge = ClassifierJudge(artifact.path)
    tenants = {(each.direction, each.target) for each in judge.certificates if each.tenant == "acme"}
    assert ("input", 0.05) in tenants and ("input", 0.001) not in tenants, "what its rows cannot certify is not there"
    assert {each.at for each in judge.certificates} == {artifact.manifest.made["at"]}
    assert all(each.at == "" for head in judge.sealed.heads for each in head.certificates)
    assert len(guard_of(judge).of("crime", "output", "acme")) == 3
