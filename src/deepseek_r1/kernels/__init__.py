"""Kernels behind one door, `ops`; `reference` holds their plain-torch truth."""
