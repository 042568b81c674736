"""Looking at a training run: its folder as the trainer writes it, live page, report, and what the policy wrote."""
