"""Two ways from preferences to a model: reinforcement against the reward model, and DPO on the pairs themselves.

python examples/04_tune.py [ROOT]
"""

import sys

from order import after

import tutelage as tt
from tutelage.terminal import figures

ROOT = sys.argv[1] if len(sys.argv) > 1 else "examples-life"
after("03_people.py", "reward", ROOT)

actor = tt.stages.rlhf(root=ROOT, method="grpo", group=4, prompts=8, iterations=2, simulated="allow")
direct = tt.stages.dpo(root=ROOT, steps=4, simulated="allow")

for made in (actor, direct):
    print(made, "from", made.manifest.inputs["model"][:18], figures(made.metrics))

# Lineage leads from either back to the people and the first text.
todo, seen = [direct], set()
while todo:
    each = todo.pop()
    if each.ref not in seen:
        seen.add(each.ref)
        parents = each.manifest.parents()
        print(f"{each.manifest.stage:<12} {each.kind}:{each.id[:8]} <- {', '.join(ref[:16] for ref in parents)}")
        todo += [tt.find(ref, root=ROOT) for ref in parents]
