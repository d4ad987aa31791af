"""What the joint policies share: settings, backbone, objective, adapters and processors."""
