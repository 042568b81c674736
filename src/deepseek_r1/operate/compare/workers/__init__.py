"""What runs inside a peer's own environment: `worker_loop.py PEER_MODULE`, which imports nothing of this package."""
