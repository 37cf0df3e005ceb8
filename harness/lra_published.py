"""What makes a row of the Long Range Arena incomparable, ours and published; averages."""

from __future__ import annotations

import pandas as pd

from harness.published import published

COLUMNS = {
    "listops": "listops",
    "text": "text",
    "retrieval": "retrieval",
    "image": "image",
    "pathfinder32": "pathfinder",
    "path_x": "path_x",
}
"""Our tasks -> columns of the HGRN2 paper's Table 7."""
MODELS = {"hgrn2": "HGRN2", "hgrn1": "HGRN1", "mamba": "Mamba", "attention": "Transformer"}
OWN_RECIPES = {"hgrn2": "lra-hgrn2-paper", "hgrn1": "lra-hgrn1-paper"}
ALONSO = "layer alone, by Alonso et al."
PUBLISHED_MARKS = {
    **{(model, "image"): "2-D, colour, augmented" for model in ("HGRN1", "HGRN2")},
    **{(m, arena): "2-D" for m in ("HGRN1", "HGRN2") for arena in ("pathfinder32", "path_x")},
    **{("Mamba", arena): ALONSO for arena in COLUMNS},
}
"""As their released code runs (HGRN1's and HGRN2's scripts), or as the paper marks them."""
SUCCESS = {"listops": 0.365, "pathfinder32": 0.55, "pathfinder64": 0.55, "path_x": 0.55}
"""A run above it has learned something: ListOps beyond the root's operator, Pathfinder beyond a
coin."""


def marks(row: pd.Series) -> str:
    """What keeps this row of ours from standing beside plain ones of their own recipes; empty for a
    plain one."""
    said = [
        "" if OWN_RECIPES.get(row["mixer"]) == row["recipe"] else f"{row['recipe']} recipe",
        "2-D" if row.get("scan", "1d") != "1d" else "",
        "colour" if row["colour"] else "",
        "augmented" if row["augment"] else "",
        f"{row['source']} data" if row["source"] != "official" else "",
        f"{row['difficulty']} images" if row["difficulty"] != "hard" else "",
        {"causal": "causal", "flip_sum": "flipped and summed"}.get(row["directions"], ""),
        "ids" if row["convention"] == "google" else "",
    ]
    return ", ".join(part for part in said if part)


def table7(mixer: str, arena: str) -> tuple[float, str]:
    """The published accuracy in percent (NaN where there is none) and its marks."""
    model = MODELS.get(mixer)
    rows = published("table7_lra").set_index("model")
    if model is None or arena not in COLUMNS:
        return float("nan"), ""
    value = float(rows.loc[model, COLUMNS[arena]])  # pyright: ignore[reportArgumentType]
    return value, PUBLISHED_MARKS.get((model, arena), "") if value == value else ""


def averages(means: pd.DataFrame) -> str:
    """The three conventions for whoever ran the five tasks without Path-X, a sentence a series."""
    told: list[str] = []
    for series, rows in means.groupby("series", sort=False):
        by_arena = rows.set_index("arena")["accuracy_percent"]
        five = [name for name in COLUMNS if name != "path_x"]
        if not set(five) <= set(by_arena.index):
            continue
        total = by_arena[five].sum()
        if "path_x" in by_arena:
            told.append(f"{series} {(total + by_arena['path_x']) / 6:.2f}")
            continue
        told.append(
            f"{series} {total / 6:.2f} with Path-X at 0 (HGRN2's table), {(total + 50) / 6:.2f} at "
            f"chance (S4's), {total / 5:.2f} without it (the arena's)"
        )
    return f"Average accuracy (%): {'; '.join(told)}." if told else ""
