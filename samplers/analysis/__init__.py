"""What a denoiser knows besides the denoised picture: uncertainty, likelihood, score norms, geometry, solver errors."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .end_time import end_time_gradient, likelihood_end_time_gradient, velocity
    from .gaussian_mixture import GaussianMixture, choose_components, fit_mixture
    from .jacobian import Jacobian, jacobian_of
    from .likelihood import GaussianPrior, Likelihood, bits_per_dimension, log_likelihood
    from .local_error import equidistributed, local_error_loss, random_leg, step_error
    from .marginal import Marginal, maximum_entropy
    from .path_score import score_along_flow
    from .posterior import (
        Moments,
        PrincipalComponents,
        moments_along,
        posterior_covariance,
        principal_components,
    )
    from .score_field import (
        LocalDimension,
        asymmetry,
        flow_spectrum,
        intrinsic_dimension,
        local_dimension,
        normal_dimension,
        score_spectrum,
    )
    from .score_norms import MixtureDetector, NeighbourDetector, geometric_levels, score_norm_features

_WHERE = {
    "end_time_gradient": "end_time",
    "likelihood_end_time_gradient": "end_time",
    "velocity": "end_time",
    "GaussianMixture": "gaussian_mixture",
    "choose_components": "gaussian_mixture",
    "fit_mixture": "gaussian_mixture",
    "Jacobian": "jacobian",
    "jacobian_of": "jacobian",
    "GaussianPrior": "likelihood",
    "Likelihood": "likelihood",
    "bits_per_dimension": "likelihood",
    "log_likelihood": "likelihood",
    "equidistributed": "local_error",
    "local_error_loss": "local_error",
    "random_leg": "local_error",
    "step_error": "local_error",
    "Marginal": "marginal",
    "maximum_entropy": "marginal",
    "score_along_flow": "path_score",
    "Moments": "posterior",
    "PrincipalComponents": "posterior",
    "moments_along": "posterior",
    "posterior_covariance": "posterior",
    "principal_components": "posterior",
    "LocalDimension": "score_field",
    "asymmetry": "score_field",
    "flow_spectrum": "score_field",
    "intrinsic_dimension": "score_field",
    "local_dimension": "score_field",
    "normal_dimension": "score_field",
    "score_spectrum": "score_field",
    "MixtureDetector": "score_norms",
    "NeighbourDetector": "score_norms",
    "geometric_levels": "score_norms",
    "score_norm_features": "score_norms",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
