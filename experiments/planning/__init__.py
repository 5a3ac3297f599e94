"""What experiments.plan computes: a step compiled for hardware that is not here, and how its bound grows with devices."""
