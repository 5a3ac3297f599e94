"""What every kernel needs around it: the device it runs on, compilation without one, traffic, tuning and timing."""
