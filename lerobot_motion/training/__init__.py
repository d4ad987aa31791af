"""What is added to a run of `lerobot-train`: its hook, ranks, optimizer and exact resuming."""
