"""People judge answers; their words become preferences, and preferences a reward model.

    python examples/03_people.py [ROOT]

The people are simulated here, some of them careless on purpose; with `people="none"` tasks are opened for real ones at
the console (`tutelage serve`), and the stage `preferences` waits for their answers.
"""

import sys

import tutelage as tt

ROOT = sys.argv[1] if len(sys.argv) > 1 else "examples-life"

asked = tt.stages.collect(root=ROOT, people="simulated", prompts=120, candidates=3, threads=1)
print(asked.metrics["tasks"], "tasks,", asked.metrics["receipts"]["answers"], "answers")

preferences = tt.stages.preferences(root=ROOT, collection=asked)
print("agreement:", preferences.metrics["tau_b"])
print("unreliable raters that were planted, and found:", preferences.metrics["found"])

reward = tt.stages.reward(root=ROOT, preferences=preferences, steps=10)
print("right on held-out pairs:", reward.metrics["accuracy"])
print("and the most that its raters' agreement allows:", reward.metrics["ceiling"])

# Simulated people are marked in everything that learned from them.
assert reward.manifest.simulated
