"""The numbers of others, as `results/published/` has them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent.parent / "results" / "published"


def published(name: str) -> pd.DataFrame:
    """The table <name>.csv; its README says where the numbers are from."""
    return pd.read_csv(FOLDER / f"{name}.csv")
