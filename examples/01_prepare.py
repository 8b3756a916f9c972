"""From text to ids: read sources into one clean corpus, learn a tokenizer on it, turn everything into ids.

    python examples/01_prepare.py [ROOT]

The examples are to be run in their order; each goes on in the same folder. What is made already is not made again.
"""

import sys

import tutelage as tt

ROOT = sys.argv[1] if len(sys.argv) > 1 else "examples-life"

# A source is `starter:` (the embedded world), `file:PATH`, `catalog:NAME` or `hf:organisation/name`.
corpus = tt.stages.prepare(root=ROOT, sources=["starter:"], scale=0.1)
words = tt.stages.tokenizer(root=ROOT, corpus=corpus, vocabulary=1024)
tokens = tt.stages.encode(root=ROOT, corpus=corpus, tokenizer=words)

# An artifact is a folder that never changes: its manifest says what it was made from, and what was measured.
print(corpus, "made", corpus.metrics["documents"], "documents under", corpus.manifest.licences)
print("dropped:", ", ".join(f"{count} {reason}" for reason, count in corpus.metrics["dropped"].items()))
print(tokens, "holds", tokens.metrics["tokens"], "tokens, made from", corpus, "and", words)

# What is learned from in a dialogue: what the assistant says, nothing else.
from tutelage.tokens.chat import encode_dialogue, stretches  # noqa: E402

example = tt.load(corpus)["dialogues"][0]
tokenizer = tt.load(words)
for part in stretches(*encode_dialogue(example, tokenizer), tokenizer):
    print("learned" if part.learned else "read   ", repr(part.text))
