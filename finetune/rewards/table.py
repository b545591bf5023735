"""The rewards as rows; `python -m pilotage.finetune.rewards.table` prints them in Markdown."""

from __future__ import annotations

from ...markdown import settings_of, table
from ...registry import everything
from .registry import COMBINATIONS, REWARDS


def rows() -> list[dict[str, str]]:
    """One row a reward, those of other packages too, then one for each way to make a reward of rewards."""
    found = list(everything("rewards", REWARDS).items()) + [(f"{n} of ...", s) for n, s in COMBINATIONS.items()]
    return [
        {
            "reward": name,
            "what it says": spec.summary,
            "needs": ", ".join(spec.needs),
            "range and licence": spec.notes,
            "paper": spec.paper,
        }
        for name, spec in found
    ]


def with_settings() -> str:
    """A Markdown table of the names and their settings with defaults."""
    hidden = ("device", "reward", "rewards")
    return table(
        [
            {
                "reward": f"`{name}`",
                "settings": ", ".join(s for s in settings_of(spec).split(", ") if _shown(s, hidden)),
            }
            for name, spec in {**REWARDS, **COMBINATIONS}.items()
        ]
    )


def _shown(setting: str, hidden: tuple[str, ...]) -> bool:
    return setting.partition("=")[0] not in hidden


if __name__ == "__main__":
    print(table(rows()))
    print(with_settings())
