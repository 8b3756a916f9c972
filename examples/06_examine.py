"""An examination with intervals, beside chance and a simple rule; an attack on the bare and the guarded model.

python examples/06_examine.py [ROOT]
"""

import sys

from order import after

import tutelage as tt
from tutelage.report.markdown import life_tables

ROOT = sys.argv[1] if len(sys.argv) > 1 else "examples-life"
after("05_guard.py", "bundle", ROOT)

models = [tt.find(name, root=ROOT) for name in ("pretrain", "finetune", "bundle")]
examined = tt.stages.evaluate(root=ROOT, of=models, items=4, controls=4, items_of={})
attacked = tt.stages.redteam(
    root=ROOT, targets=models[1:], goals=1, queries=1, written=1, benign=12, pairs=4, letters=4, helpful=models[1]
)

# The same tables that `tutelage report --markdown` writes: every figure with its interval and n.
print(life_tables({"evaluate": examined, "redteam": attacked}))
