"""Networks: the motion head that is trained, and the frozen codec of its targets."""
