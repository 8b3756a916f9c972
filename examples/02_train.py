"""Pre-training and fine-tuning of a very small model, and a first talk with it.

python examples/02_train.py [ROOT]
"""

import sys

from order import after

import tutelage as tt
from tutelage.core.records import Example
from tutelage.generate.generator import Sampling
from tutelage.report.markdown import figure

ROOT = sys.argv[1] if len(sys.argv) > 1 else "examples-life"
after("01_prepare.py", "encode", ROOT)
SMALL = {"depth": 2, "width": 64, "heads": 2, "kv_heads": 2, "feed_forward": 160}

# Inputs that are not named are the newest of their stage: the tokens and the tokenizer of example 01.
base = tt.stages.pretrain(root=ROOT, steps=40, **SMALL)
tuned = tt.stages.finetune(root=ROOT, model=base, steps=40)
print("validation loss in nats, of texts:", figure(base.metrics["validation"], n=True))
print("of dialogues, once tuned:", figure(tuned.metrics["validation"], n=True))

# A reference opens as a generator; the same interface stands before a bundle, a release and an address.
model = tt.open(tuned.ref, root=ROOT)
for question in ("Where is the bakery?", "What kind of work has Sabeh?"):
    answer = model.generate([Example.ask(question)], Sampling(max_tokens=24))[0][0]
    print(f"{question} -> {answer.message.content}")

# The weights lie in Hugging Face's layout, and load as a torch module here.
decoder = tt.load(tuned)
print(sum(parameter.numel() for parameter in decoder.parameters()), "parameters in", tuned.path)
