"""What the joint policies share: settings, backbone, objective, loading and processors."""
