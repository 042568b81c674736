"""Reasoning tasks whose answers can be checked, with short traces that this package derives step by step."""
