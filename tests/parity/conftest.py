from __future__ import annotations

import torch

# Tiny shapes gain nothing from threads, and spinning ones stall when another process takes a core.
torch.set_num_threads(1)
