"""Text to ids and back: the tokenizer, the chat template with its loss mask, the encoded corpus."""
