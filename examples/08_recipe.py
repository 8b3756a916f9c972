"""All of it as one recipe: planned, run, and gone on with where it stopped.

python examples/08_recipe.py [ROOT]
"""

import sys

import tutelage as tt
from tutelage.core.artifact import Root
from tutelage.plan import plan
from tutelage.recipe import read_recipe

ROOT = sys.argv[1] if len(sys.argv) > 1 else "examples-life"
SMALL = {"depth": 2, "width": 64, "heads": 2, "kv_heads": 2, "feed_forward": 160}
RECIPE = {
    "watch": {"items": 8},
    "prepare": {"sources": ["starter:"], "scale": 0.1},
    "tokenizer": {"vocabulary": 1024},
    "encode": None,
    "pretrain": {"steps": 40, **SMALL},
    "finetune": {"steps": 40},
    "finetune@longer": {"model": "finetune", "steps": 20},
}

for stage in plan(read_recipe(RECIPE), Root(ROOT)).stages:
    print(f"{stage.name:<18} {stage.cost.seconds:6.1f} s  {'made already' if stage.known else ''}")

made = tt.run(RECIPE, root=ROOT)
again = tt.run(RECIPE, root=ROOT)  # the same recipe: nothing is made anew
assert {name: each.id for name, each in made.items()} == {name: each.id for name, each in again.items()}
for name, each in made.items():
    print(f"{name:<18} {each.kind}:{each.id[:12]}")
