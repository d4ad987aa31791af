"""motion_pi0: LeRobot's pi0 with a motion head."""
