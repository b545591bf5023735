"""What every training shares: the model that learns, the loop around updates, checkpoints, adapters, the page of a run.

`finetune` and `distill` stand on this folder; it knows neither of them.
"""
