"""From collected sets to results: each metric with its interval, its null value and how it was made."""
