"""Our rows of the Long Range Arena next to the published ones: what marks each, averages."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness.published import published
from harness.series import setting, spoken
from harness.style import mixer_name

TITLES = {
    "listops": "ListOps",
    "text": "Text",
    "retrieval": "Retrieval",
    "image": "Image",
    "pathfinder32": "Pathfinder",
    "pathfinder64": "Pathfinder, 64 pixels",
    "path_x": "Path-X",
    "path_256": "Path-256",
}
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
TEXT = "epoch chosen on the test set"
SCANS = {"2d_parallel": "2-D parallel", "2d_series": "2-D series"}
DIRECTIONS = {
    "causal": "causal",
    "flip_sum": "flipped and summed",
    "apart_sum": "a layer each way, summed",
}
PUBLISHED_CAUSAL = ("gla", "mamba")
PUBLISHED_MARKS = {
    **{(model, "text"): TEXT for model in ("HGRN1", "HGRN2")},
    **{(model, "image"): "2-D parallel, colour, augmented" for model in ("HGRN1", "HGRN2")},
    **{("HGRN1", arena): "2-D parallel" for arena in ("pathfinder32", "path_x")},
    ("HGRN2", "pathfinder32"): "2-D parallel, batch norm of 16 images",
    ("HGRN2", "path_x"): "2-D series, batch norm of 32 images",
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
        f"changed in {row['recipe_changes']}" if row["recipe_changes"] else "",
        SCANS.get(row.get("scan", "1d"), ""),
        "colour" if row["colour"] else "",
        "augmented" if row["augment"] else "",
        f"{row['source']} data" if row["source"] != "official" else "",
        f"{row['difficulty']} images" if row["difficulty"] != "hard" else "",
        DIRECTIONS.get(row["directions"], _both_ways(row)),
        "ids" if row["convention"] == "google" else "",
        f"pool {row['pool']}" if row["pool"] != "mean" else "",
        _validation(row),
    ]
    return ", ".join(part for part in said if part)


def _both_ways(row: pd.Series) -> str:
    return "both directions, ours" if row["mixer"] in PUBLISHED_CAUSAL else ""


def _validation(row: pd.Series) -> str:
    if row["arena"] != "text":
        return ""
    if row["validation"] != "test":
        return "a tenth held out"
    return TEXT if row["report"] == "best" else ""


def recipe_words(table: pd.DataFrame) -> str:
    """A caption's sentence of the recipes, and of who changes what in them."""
    changes = table.get("recipe_changes", pd.Series("", table.index)).fillna("")
    told = [setting(table, "recipe", "{}")]
    for change in filter(None, changes.unique()):
        mixers = table.loc[changes == change, "mixer"].unique()
        whole = {mixer: (changes[table["mixer"] == mixer] == change).all() for mixer in mixers}
        names = [("" if every else "some of ") + mixer_name(name) for name, every in whole.items()]
        told.append(f"changed in {change}: {', '.join(names)}")
    return f"Recipe {'; '.join(told)}." if told[0] else ""


def table7(mixer: str, arena: str) -> tuple[float, str]:
    """The published accuracy in percent (NaN where there is none) and its marks."""
    model = MODELS.get(mixer)
    rows = published("table7_lra").set_index("model")
    if model is None or arena not in COLUMNS:
        return float("nan"), ""
    value = float(rows.loc[model, COLUMNS[arena]])  # pyright: ignore[reportArgumentType]
    return value, PUBLISHED_MARKS.get((model, arena), "") if value == value else ""


def averages(means: pd.DataFrame) -> str:
    """Of whoever ran the five tasks without Path-X, a part a series: over six, or where Path-X is
    absent or no better than chance by the three conventions; then what marks the rows."""
    told: list[str] = []
    for series, rows in means.groupby("series", sort=False):
        by_arena = rows.set_index("arena")["accuracy_percent"]
        five = [name for name in COLUMNS if name != "path_x"]
        if not set(five) <= set(by_arena.index):
            continue
        total = by_arena[five].sum()
        path_x = by_arena.get("path_x", 0.0)
        averaged = [*five, "path_x"] if path_x > 100 * SUCCESS["path_x"] else five
        if averaged == five:
            words = (
                f"{series} {total / 6:.2f} with Path-X at 0 (HGRN2's table), "
                f"{(total + 50) / 6:.2f} at chance (S4's), {total / 5:.2f} without it (the arena's)"
            )
        else:
            words = f"{series} {(total + path_x) / 6:.2f} over six"
        lines = rows.loc[rows["arena"].isin(averaged), "ours_is"]
        said = {part: None for line in lines for part in line.split(", ") if part}
        told.append(f"{words} ({', '.join(said)})" if said else words)
    return f"Average accuracy (%): {'; '.join(told)}." if told else ""


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each series and task: ours over seeds, the published number, what marks each,
    and what training took by the wall, beside a pack's other models."""
    rows: list[dict[str, Any]] = []
    ran = table[table["accuracy"].notna()]
    for (arena, series), cells in ran.groupby(["arena", "series"], sort=False):
        first = cells.iloc[0]
        theirs, their_marks = table7(str(first["mixer"]), str(arena))
        percent = 100 * cells["accuracy"]
        line = SUCCESS.get(str(arena))
        row = {
            "arena": arena,
            "series": series,
            "mixer": first["mixer"],
            "recipe": first["recipe"],
            "data": spoken(cells["provenance"]),
            "ours_is": marks(first),
            "accuracy_percent": percent.mean(),
            "accuracy_min": percent.min(),
            "accuracy_max": percent.max(),
            "at_best_val": 100 * cells["test_accuracy_best_val"].mean(),
            "seeds": cells["seed"].nunique(),
            "learned": float("nan") if line is None else (cells["val_accuracy"] > line).mean(),
            "published": theirs,
            "published_is": their_marks,
            "difference": percent.mean() - theirs,
            "alike": marks(first) == their_marks,
            "pack": spoken(cells["pack"]),
            "layers": first["n_layers"],
            "width": first["d_model"],
        }
        costs = ("train_s", "tokens_per_s", "sequences_per_s", "parameters", "parameters_mixers")
        rows.append(row | {name: cells[name].median() for name in costs})
    rows.sort(key=lambda row: list(TITLES).index(row["arena"]))
    return pd.DataFrame(rows)


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """The comparison for a reader; † where ours and theirs are not alike."""
    result = rows.drop(columns=["mixer", "alike", "accuracy_min", "accuracy_max"])
    told = [
        "–" if value != value else f"{value:+.2f}{'' if alike else ' †'}"
        for value, alike in zip(rows["difference"], rows["alike"], strict=True)
    ]
    low, high = rows["accuracy_min"], rows["accuracy_max"]
    spread = [f"{a:.1f} to {b:.1f}" for a, b in zip(low, high, strict=True)]
    result = result.assign(difference=told)
    result.insert(list(result).index("seeds"), "range", spread)
    for name in ("ours_is", "published_is"):
        result[name] = result[name].replace("", "plain")
    result.loc[rows["published"].isna(), "published_is"] = "–"
    return result.rename(columns=lambda name: str(name).replace("_", " "))
