"""Tests run on one thread: small tensors gain nothing from more, and several runs share a machine."""

import torch

torch.set_num_threads(1)
