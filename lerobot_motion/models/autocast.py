"""What networks compute in under autocast."""

import torch


def dtype_of_products(device: torch.device, weights: torch.dtype) -> torch.dtype:
    """What a linear layer computes in, with weights of a dtype.

    Args:
        device: Where.
        weights: Dtype of the layer's weights.

    Returns:
        Autocast's dtype where it is enabled, else that of the weights.
    """
    # There is no autocast on the meta device, on which memory is reckoned.
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return weights
