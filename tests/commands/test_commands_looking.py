"""Looking, making and serving: what is printed, and what a mistake says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage import life
from tutelage.core.artifact import Root
from tutelage.core.errors import ConfigError, CorruptArtifact
from tutelage.model.checkpoint import import_model, save
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.recipe import LIFE, read_recipe
from tutelage.tokens.encode import encode
from tutelage.tokens.tokenizer import load
from tutelage.train.finetune import finetune
from tutelage.web.app import serve

SECTION_7 = (
    *(name for name in LIFE if name != "release"),
    *("init", "run", "plan", "list", "show", "lineage", "report", "compare", "show-mask", "agreement"),
    *("chat", "serve", "worker"),
    *("guard scan", "guard train", "guard up", "policy check", "policy diff", "policy replay"),
    *("release make", "release status", "release promote", "release rollback"),
    *("store backup", "store restore", "store check", "import model", "import feedback", "export feedback"),
    *("export model", "export data", "export feedback", "audit verify", "erase", "gc", "stop", "doctor"),
)


@pytest.mark.parametrize("command", SECTION_7)
def test_every_command_of_the_design_has_help_and_json(tutelage: Any, command: str) -> None:
    done = tutelage(*command.split(), "--help")
    assert done.code == 0 and "Usage" in done.out
    if command not in ("serve", "guard up"):
        assert "--json" in done.out


def test_help_answers_at_once() -> None:
    """Half a second on an idle machine; counted in processor time, so that a busy one does not matter."""
    program = (
        "import os, sys\nsys.argv = ['tutelage', '--help']\nfrom tutelage.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "t = os.times()\nprint(t.user + t.system, 'torch' in sys.modules, file=sys.stderr)"
    )
    best = min(
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stderr.split()[0])
        for _ in range(3)
    )
    assert best < 0.5


def test_what_a_person_mistypes(tutelage: Any, little: Root, tmp_path: Path) -> None:
    where, here = ("--root", little.path), Path.cwd()
    recipe, uneven = tmp_path / "recipe.yaml", tmp_path / "uneven.yaml"
    recipe.write_text('prepare: {sources: ["file:nowhere.jsonl"]}\n')
    uneven.write_text("prepare:\ntokenizer:\nencode:\npretrain: {width: 65, heads: 2}\n")
    for arguments, said in (
        (("show", "pretrain", *where), "has no section 'pretrain', and it is no reference"),
        (("show", "corpus:0000", *where), "no artifact"),
        (("list", "--root", tmp_path), "there is no life here yet"),
        (("lineage", "release:current", *where), "nothing has been released yet"),
        (("run", tmp_path / "none.yaml", *where), "no such file"),
        (("run", tmp_path, *where), "this is a folder. Name a file in it: "),
        (
            ("run", recipe, *where),
            f"nowhere.jsonl, key 'prepare.sources': no such file. It is looked for from {here}. The",
        ),
        (("run", uneven, *where), f"{uneven}, key 'pretrain.heads': 2 heads do not divide a width of 65"),
        (("chat", "prepar", *where), "Did you mean 'prepare'?"),
        (("chat", "prepare", *where), "'prepare' is of kind corpus: nothing that answers"),
        (("evaluate", "prepare", *where), "--suite FILE.jsonl"),
        (("evaluate", "prepar", *where), "Did you mean 'prepare'?"),
        (("evaluate", "prepar", "--suite", "x.jsonl", *where), "Did you mean 'prepare'?"),
        (("evaluate", "fake:echo", "--suite", "starter:less", *where), "key '--suite': there are starter: and"),
        (("pretrain", "dept=3", *where), "Did you mean 'depth'"),
        (("prepare", "scale=2", *where), "scale"),
        (("run", little.recipe_path, "--root", "/proc/x"), "/proc/x: no such file or directory. Check how"),
        (("init", "/proc/x"), "/proc/x: no such file or directory. Check how"),
        (("release", "rollback", *where), "nothing is served"),
        (("chat", "nobody", *where), "it is no reference"),
        (("init", tmp_path / "x", "--from", "gard"), "guard, guards, open-model"),
        (("evaluate", "--suite", tmp_path / "none.jsonl", *where), "name what is to be examined"),
        (("report", "--markdown", __file__, *where), "has no place for the tables"),
    ):
        done = tutelage(*arguments)
        assert done.code == 2 and said in done.err, (arguments, done)
        assert json.loads(tutelage(*arguments, "--json").err.splitlines()[-1])["exit_code"] == 2


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("OSError(28, 'No space left on device', 'life/a')", 1, "error: life/a: the disk is full. Free some space"),
        ("PermissionError(13, 'Permission denied', 'life/a')", 2, "error: life/a: permission denied. Change its"),
        ("OSError(98, 'Address already in use')", 1, "error: address already in use. "),
        ("BrokenPipeError(32, 'Broken pipe')", 1, ""),
    ],
)
def test_what_the_system_refuses_is_one_line(raised: str, code: int, said: str) -> None:
    program = (
        f"from tutelage.commands.base import errors_as_exit_codes\nwith errors_as_exit_codes(False): raise {raised}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code and done.stderr.startswith(said) and done.stderr.count("\n") == bool(said), done


def test_show_mask_marks_what_is_learned(tutelage: Any, little: Root, tmp_path: Path) -> None:
    done = tutelage("show-mask", "--root", little.path)
    assert "?<|end|><|assistant|>«House" in done.out and "are learned from)" in done.out
    parts = tutelage("show-mask", "--root", little.path, "--row", "2", "--json").json["parts"]
    assert [each["learned"] for each in parts] == [False, True] and parts[1]["text"].endswith("<|end|>")
    assert tutelage("show-mask", "--root", little.path, "--row", "999").code == 2
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    assert "«b<|end|>»" in tutelage("show-mask", own, "--root", little.path).out
    made = [
        tutelage("show-mask", name, "--root", little.path, "--row", "2", "--json") for name in ("encode", "prepare")
    ]
    assert {part["text"] for part in made[0].json["parts"] if part["learned"]} and made[0].json["parts"][-1]["learned"]
    assert [part["learned"] for part in made[0].json["parts"]] == [part["learned"] for part in made[1].json["parts"]]
    assert "no such row" in tutelage("show-mask", "encode", "--root", little.path, "--row", "999999").err
    own.write_text('{"messages": [{"role": "nobody"}]}')
    assert "row 1" in tutelage("show-mask", own, "--root", little.path).err


def test_show_mask_reads_with_the_tokenizer_that_the_ids_were_made_with(
    tutelage: Any, little: Root, tmp_path: Path
) -> None:
    """A life of somebody else's model has no section `tokenizer`."""
    theirs, words = str(tmp_path / "theirs"), life.last(little)["tokenizer"].path
    shape = DecoderConfig(load(words).size, 16, 32, 1, 2, 2, max_position_embeddings=128)
    save(Decoder(shape, seed=0), Path(theirs), words)
    root = Root(tmp_path / "life").create()
    shutil.copytree(little.path / "artifacts" / "corpus", root.artifacts / "corpus")
    made = {"prepare": root.find(life.last(little)["prepare"].ref)}
    made["encode"] = encode(root, corpus=made["prepare"], tokenizer=theirs)
    settings = {"steps": 1, "threads": 1, "batch": 256, "micro": 256}
    made["finetune"] = finetune(root, model=theirs, tokens=made["encode"], **settings)
    (root.path / "life.json").write_text(json.dumps({name: artifact.ref for name, artifact in made.items()}))
    shown = [tutelage("show-mask", source, "--root", root.path) for source in ("finetune", "encode", "prepare")]
    assert all("?<|end|><|assistant|>«House" in each.out for each in shown), shown
    assert tutelage("show-mask", "--tokenizer", "tokenizer", "--root", root.path).code == 2


@pytest.mark.parametrize("origin", ["starter", "public", "guard", "open-model"])
def test_init_gives_a_recipe_that_is_whole(tutelage: Any, tmp_path: Path, origin: str) -> None:
    done = tutelage("init", tmp_path / "mine", "--from", origin, "--json")
    assert (done.code == 0 and done.json["next"].startswith("tutelage run")) or "tutelage" in done.json["next"]
    read_recipe(Path(done.json["recipe"]))
    assert tutelage("init", tmp_path / "mine").code == 2


def test_a_stage_alone_prints_what_it_made(tutelage: Any, little: Root) -> None:
    before = life.made_last(little)
    done = tutelage("tokenizer", "vocabulary=304", "--root", little.path, "--json")
    assert done.json["tokenizer"].startswith("tokenizer:") and life.made_last(little) == before
    assert "vocabulary" in tutelage("tokenizer", "--keys").out
    told = tutelage("show", done.json["tokenizer"], "--root", little.path)
    assert "vocabulary: 304" in told.out and "all match their hashes" in told.out
    stages = {each["stage"] for each in tutelage("lineage", "encode", "--root", little.path, "--json").json}
    assert stages == {"prepare", "tokenizer", "encode"}


def test_keys_are_told_with_what_they_allow(tutelage: Any, little: Root) -> None:
    lines = tutelage("pretrain", "--keys").out.splitlines()
    assert not [line for line in lines if line.startswith("lora")], "pre-training always refuses them"
    assert next(line for line in lines if line.startswith("precision=")).endswith("One of auto, fp32, bf16.")
    lines = tutelage("finetune", "--keys").out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("lora_targets="))
    assert lines[at].endswith("=q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj")
    assert lines[at + 1].strip().startswith("Which matrices of every block")


def test_a_shown_figure_is_read_at_a_glance(tutelage: Any, little: Root) -> None:
    out = tutelage("show", "prepare", "--root", little.path).out
    assert out.index("metrics:") < out.index("config:")
    told = out[out.index("metrics:") : out.index("config:")]
    assert not re.search(r"\.[0-9]{6}|[{}]", told), "neither seventeen digits nor nested mappings"


def test_doctor_says_what_there_is_and_what_an_extra_would_give(tutelage: Any) -> None:
    found = tutelage("doctor", "--json").json
    assert set(found["extras"]) == {"train", "hf", "gguf", "otel", "postgres"} and found["extras"]["train"]
    assert {"memory", "gpu", "engine", "TUTELAGE_DATA"} <= set(found)
    assert "[postgres]" in tutelage("doctor").out


def test_a_plan_stands_beside_what_it_took(tutelage: Any, little: Root, tmp_path: Path) -> None:
    recipe = little.path.parent / "recipe.yaml"
    assert tutelage("run", recipe, "--root", little.path).code == 0  # made already; it is the last run again
    done = tutelage("plan", recipe, "--root", little.path)
    assert done.code == 0 and "ratio" in done.out and "of 3 stages within 25%" in done.out
    told = tutelage("plan", recipe, "--root", little.path, "--json").json
    assert [each["stage"] for each in told["took"]] == ["prepare", "tokenizer", "encode"]
    assert all(each["predicted"] > 0 and each["ratio"] is not None for each in told["took"])
    assert "of 3 stages" in told["verdict"]
    page = Path(tutelage("report", "--root", little.path, "--json").json["report"])
    assert "of 3 stages within 25%" in page.read_text()
    tutelage("report", "--root", little.path, "--markdown", tmp_path / "life.md", "--part", "timing")
    assert "| prepare |" in (tmp_path / "life.md").read_text()


def test_examining_an_answerer(tutelage: Any, little: Root, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    ask = {"messages": [{"role": "user", "content": "Say ferry"}], "target": "ferry", "tags": {"kind": "generate"}}
    own.write_text(json.dumps(ask))
    done = tutelage("evaluate", "fake:echo", "--suite", own, "--root", little.path)
    assert done.code == 0 and "own" in done.out and "n=1" in done.out
    done = tutelage("evaluate", "fake:echo", "--suite", "facts", "--root", little.path)
    assert done.code == 2 and "neither a file nor a suite" in done.err
    done = tutelage("evaluate", "fake:echo", "reliability.same=1", "--suite", own, "--root", little.path)
    assert done.code == 0 and "answers that differ, asked alone" in done.out and "0.000" in done.out
    forms = ("robustness.items=1", "robustness.families=[casing, options]")
    told = tutelage("evaluate", "fake:echo", *forms, "--suite", own, "--root", little.path, "--json").json
    assert {row["family"]: row["n"] for row in told["robustness"] if row["suite"]} == {
        "casing": 1,
        "options": 0,
        "worst case": 0,
    }
    for wrong, said in (
        ("robustness.families=[caseing]", "did you mean 'casing'"),
        ("robustnes.items=1", "robustness"),
    ):
        done = tutelage("evaluate", "fake:echo", wrong, "--suite", own, "--root", little.path)
        assert done.code == 2 and said in done.err, done
    rows = [{"prompt": f"{n}", "target": f"{n}", "split": "train" if n > 5 else "test"} for n in range(9)]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = tutelage(
        "evaluate", "fake:echo", "--suite", own, "--shots", "2", "--draws", "2", "--other-form", "--root", little.path
    )
    assert done.code == 0 and "n=6" in done.out and "over 2 draws of examples" in done.out
    assert "asked as raw instead of chat" in done.out
    told = tutelage("evaluate", "fake:echo", "--suite", own, "--shots", "2", "--json", "--root", little.path).json
    assert told["cells"][0]["value"] == 1.0 and "draws" not in told
    for more, says in (
        (("--shots", "4"), "3 are left"),
        (("--form", "html"), "written"),
        (("--shots", "1", "--shots-from", tmp_path / "none.jsonl"), "no such file"),
        (("--judge", "nobody:x"), "nobody"),
    ):
        done = tutelage("evaluate", "fake:echo", "--suite", own, *more, "--root", little.path)
        assert done.code == 2 and says in done.err, (more, done.err)
    done = tutelage("evaluate", "fake:say 4", "--suite", "starter:more", "--items", "4", "--root", little.path)
    assert done.code == 0 and "sums" in done.out and "town_bbq" in done.out and "were not measured" in done.out
    done = tutelage("evaluate", "fake:echo", "--suite", "starter:less", "--root", little.path)
    assert done.code == 2 and "starter:more" in done.err
    own.write_text('{"messages": [], "target": "x"}')
    done = tutelage("evaluate", "fake:echo", "--suite", own, "--root", little.path)
    assert done.code == 2 and "row 1" in done.err


def test_talking_to_a_model(tutelage: Any, tmp_path: Path) -> None:
    done = tutelage("chat", "fake:echo", "--root", tmp_path / "none", stdin="hello there\n\nnot read\n")
    assert done.code == 0 and done.out.count("model>") == 1
    line = tutelage("chat", "fake:echo", "--json", "--root", tmp_path / "none", stdin="hello\n").json
    assert line["message"]["role"] == "assistant"
    assert tutelage("chat", "fake:echo", "--temperature", "-1", stdin="hello\n").code == 2


@pytest.fixture(scope="module")
def spoken(little: Root, tmp_path_factory: pytest.TempPathFactory) -> tuple[Root, str]:
    """A root with a small model, and its reference."""
    words, folder = life.last(little)["tokenizer"].path, tmp_path_factory.mktemp("spoken")
    shape = DecoderConfig(load(words).size, 16, 32, 1, 2, 2, max_position_embeddings=128)
    save(Decoder(shape, seed=0), folder / "theirs", words)
    root = Root(folder / "life").create()
    return root, import_model(str(folder / "theirs"), root).ref


def test_what_was_not_answered_says_why_and_tells(tutelage: Any, spoken: tuple[Root, str], guarded: Root) -> None:
    root, ref = spoken
    talk = "ferry " * 200 + "\nferry\n"
    done = tutelage("chat", ref, "--root", root.path, "--tokens", "3", stdin=talk)
    assert done.code == 1 and done.out.count("model>") == 2, "and the next line is answered"
    assert " tokens, the model's context is 128; a new conversation begins]" in done.out.splitlines()[0]
    done = tutelage("chat", ref, "--root", root.path, "--json", stdin="ferry " * 200)
    assert done.code == 1 and "context is 128" in done.json["error"] and done.json["finish"] == "error"
    judge = guarded.list("classifier")[0].ref
    done = tutelage("chat", judge, "--root", guarded.path, stdin="hello\n")
    assert done.code == 2 and "is a judge: it gives verdicts on texts and answers none. Name a model" in done.err


def test_an_examination_that_measured_nothing_has_failed(
    tutelage: Any, spoken: tuple[Root, str], tmp_path: Path
) -> None:
    root, ref = spoken
    own, short = tmp_path / "own.jsonl", {"role": "user", "content": "Say ferry"}
    long = {"role": "user", "content": "Say ferry. " * 100}
    rows = [{"messages": [each], "target": "ferry", "tags": {"kind": "generate"}} for each in (long, short)]
    where = ("--suite", own, "--root", root.path)
    own.write_text(json.dumps(rows[0]))
    done = tutelage("evaluate", ref, *where)
    assert done.code == 1 and "none of 1 items was measured: the conversation has" in done.err
    own.write_text("\n".join(map(json.dumps, rows)))
    done = tutelage("evaluate", ref, *where)
    assert done.code == 0 and "1 of 2 items were not measured: the conversation has" in done.out
    done = tutelage("evaluate", "http://127.0.0.1:9/v1#m", "retries=0", *where)
    assert done.code == 1 and "none of 2 items was measured: http://127.0.0.1:9/v1#m failed: " in done.err
    assert "refused" in done.err


def test_a_port_that_there_is_not(tutelage: Any, spoken: tuple[Root, str]) -> None:
    for command in (("serve",), ("guard", "up", "http://127.0.0.1:9/v1#m")):
        done = tutelage(*command, "--port", "99999", "--root", spoken[0].path)
        assert done.code == 2 and "65535" in done.err, done
    with pytest.raises(ConfigError, match="65535"):
        serve(spoken[0], port=99999)


def test_what_is_damaged_is_not_served_and_hides_nothing(
    tutelage: Any, spoken: tuple[Root, str], little: Root, tmp_path: Path
) -> None:
    root = Root(shutil.copytree(spoken[0].path, tmp_path / "life"))
    shutil.copytree(little.artifacts / "tokenizer", root.artifacts / "tokenizer")
    weights = root.find(spoken[1]).path / "model.safetensors"
    weights.chmod(0o600)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8] + b"\0\0\0@\0\0\0@")  # 2.0 twice: nothing else would notice
    done = tutelage("chat", spoken[1], "--root", root.path, stdin="ferry\n")
    assert done.code == 1 and "the file differs from what was sealed" in done.err and "tutelage run RECIPE" in done.err
    assert not done.out
    manifest = weights.parent / "manifest.json"
    manifest.chmod(0o600)
    manifest.write_text(manifest.read_text()[:-9])
    listed = tutelage("list", "--root", root.path)
    assert listed.code == 0 and "tokenizer:" in listed.out and f"damaged: {manifest}: " in listed.out
    rows = tutelage("list", "--root", root.path, "--json").json
    assert [each.get("error") for each in rows] == [None] * (len(rows) - 1) + ["CorruptArtifact"] and len(rows) > 1
    with pytest.raises(CorruptArtifact):  # what may remove things asks for all of them
        root.list()
