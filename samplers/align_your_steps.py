"""Align Your Steps: Sabour et al. 2024, arXiv 2404.14507. Levels that were optimised for a model, and other numbers of
steps from them."""

from __future__ import annotations

import numpy as np

# rho of the 10-step grids; the 0 that ends them is left out
TABLES: dict[str, tuple[float, ...]] = {
    "sd1.5": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}
SMALLEST = {"sd1.5": 0.029167, "sdxl": 0.029167, "svd": 0.002}  # stands for the final 0 while interpolating


def aligned_rhos(model: str, steps: int) -> list[float]:
    """The noise levels that `steps` steps visit: log rho linear in i / 10 between the entries of the table (with the
    model's smallest level at its end), at i = 0 .. 10 in equal parts; the last is left out."""
    table = (*TABLES[model], SMALLEST[model])
    nodes = np.linspace(0, 1, len(table))
    wanted = np.linspace(0, 1, steps + 1)[:-1]
    return np.exp(np.interp(wanted, nodes, np.log(table))).tolist()
