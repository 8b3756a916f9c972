"""The gate decides on bounds, never on means; what passes is served, and can be rolled back as one.

python examples/07_release.py [ROOT]
"""

import sys

from order import after

import tutelage as tt
from tutelage.core.errors import Refused

ROOT = sys.argv[1] if len(sys.argv) > 1 else "examples-life"
after("06_examine.py", "redteam", ROOT)

try:
    release = tt.stages.release(root=ROOT)
    print("promoted:", release.metrics["reason"])
    print("To serve it: tutelage serve --root", ROOT)
except Refused as refusal:  # a model this small, on so few items, should not pass
    print("refused:", refusal.message)

verdict = tt.load(tt.find("release", root=ROOT))["verdict"]
for check in verdict["checks"]:
    print(f"{check['id']:<16} {check['passed']!s:<6} {check['reason']}")
