"""Training: schedules that follow the loss, the optimizer, loss scaling, and saved runs that survive a kill."""
