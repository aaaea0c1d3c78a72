//! Tensor, device, the closed list of operations and their gradients.
