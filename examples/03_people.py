"""People judge answers; their words become preferences, and preferences a reward model.

    python examples/03_people.py [ROOT]

The people are simulated here, some of them careless on purpose; with `people="none"` tasks are opened for real ones at
the console (`tutelage serve`), and the stage `preferences` waits for their answers.
"""

import sys

from order import after

import tutelage as tt
from tutelage.report.markdown import figure

ROOT = sys.argv[1] if len(sys.argv) > 1 else "examples-life"
after("02_train.py", "finetune", ROOT)

asked = tt.stages.collect(root=ROOT, people="simulated", prompts=120, candidates=3, threads=1)
print(asked.metrics["tasks"], "tasks,", asked.metrics["receipts"]["answers"], "answers")

preferences = tt.stages.preferences(root=ROOT, collection=asked, simulated="allow")
print("agreement, Kendall's tau-b:", figure(preferences.metrics["tau_b"], n=True))
found = preferences.metrics["found"]["detection"]
print(f"careless people: {found['planted']} planted, {found['found']} suspected, {found['right']} of them rightly")

reward = tt.stages.reward(root=ROOT, preferences=preferences, steps=10, simulated="allow")
print("right on held-out pairs:", figure(reward.metrics["accuracy"], n=True))
print("and the most that its raters' agreement allows:", figure(reward.metrics["ceiling"], n=True))

# Simulated people are marked in everything that learned from them, and nothing learns from them unless it is told to:
# a recipe says so once, `simulated: allow` at its top.
assert reward.manifest.simulated
