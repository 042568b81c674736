"""Text at the edge of the model: tokenizers, chat templates, detokenising and the think-splitter. No torch here."""
