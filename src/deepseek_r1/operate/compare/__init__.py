"""Comparing with other engines on the same model and prompts: who they are, the processes they run in, the figures."""
