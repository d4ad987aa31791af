"""motion_pi05: LeRobot's pi0.5 with a motion head."""
