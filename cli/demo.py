"""pilotage demo"""

from __future__ import annotations

from .options import Given, takes_spec


@takes_spec
def demo(given: Given) -> None:
    """Several rules on the embedded model, on one page: runs/demo/index.html.

    This is `pilotage compare --preset demo`.
    """
    from ..generation.comparison import CompareSpec
    from .compare import run_comparison

    run_comparison(given.resolve(CompareSpec, default_preset="demo"), given.dry_run)
