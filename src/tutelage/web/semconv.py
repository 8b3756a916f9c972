"""The names that spans bear: OpenTelemetry's semantic conventions for generative AI (`gen_ai.*`, status Development in
the conventions of 2025), and our own under `tutelage.*`. They stand here alone, since they still change."""

from __future__ import annotations

from typing import Final

SCOPE: Final = "tutelage"
OPERATIONS: Final = {"chat": "chat", "completions": "text_completion", "responses": "chat", "embeddings": "embeddings"}
"""Surface -> `gen_ai.operation.name`."""
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CONVERSATION: Final = "gen_ai.conversation.id"
MAX_TOKENS: Final = "gen_ai.request.max_tokens"
TEMPERATURE: Final = "gen_ai.request.temperature"
CHOICES: Final = "gen_ai.request.choice.count"
ERROR: Final = "error.type"

TENANT: Final = "tutelage.tenant"
RELEASE: Final = "tutelage.release"
POLICY: Final = "tutelage.policy"
SURFACE: Final = "tutelage.surface"
STREAM: Final = "tutelage.stream"
ACTION: Final = "tutelage.decision.action"
RULES: Final = "tutelage.decision.rules"
DIRECTION: Final = "tutelage.decision.direction"
GUARD: Final = "tutelage.guard.name"
STATUS: Final = "tutelage.guard.status"
CATEGORY: Final = "tutelage.guard.category"
COST: Final = "tutelage.guard.cost_ms"
VERDICT_EVENT: Final = "tutelage.guard.verdict"
DECISION_EVENT: Final = "tutelage.decision"
