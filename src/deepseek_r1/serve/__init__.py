"""The OpenAI-compatible server: API process, process border, supervisor, chat page. Computes no tensors."""
