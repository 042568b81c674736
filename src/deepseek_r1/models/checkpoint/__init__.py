"""Reading and writing checkpoints (GGUF, safetensors) with numpy alone: processes without torch open them too."""
