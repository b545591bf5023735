"""Gradients through sampling.

x_0 = samplers.adjoint.sample(denoiser, x, method="checkpoint", sampler="ddim", steps=20)
loss(x_0).backward()                    # in x, in the condition's tensors, in the networks' parameters
"""

from .draft_lv import draft_lv
from .method import Method
from .predict import predict_clean
from .registry import METHODS, make_method
from .sample import Record, sample

__all__ = ["METHODS", "Method", "Record", "draft_lv", "make_method", "predict_clean", "sample"]
