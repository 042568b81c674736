"""Settings as frozen, typed dataclasses, one file per consumer; each field carries its documentation. No torch."""
