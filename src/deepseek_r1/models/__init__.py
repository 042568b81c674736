"""Text models: checkpoints, tokenizers, families and the one decoder."""
