"""Measures farcall beside its peers: `python -m bench calls`."""
