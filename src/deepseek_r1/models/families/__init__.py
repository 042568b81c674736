"""Families: each a config builder for its metadata and a two-way weight-name table for the one decoder."""
