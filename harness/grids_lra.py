"""The grids of the Long Range Arena, and of the time of a training step at 16,384 tokens."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import torch

from harness.grids_speed import our_impl
from mixers import GLA, HGRN1, HGRN2, Attention, Mamba, Mixer
from mixers.hgrn import Scan
from tasks.base import Task
from tasks.lra import recipes
from tasks.lra.data import TEXTS, Data, official_is_there
from tasks.lra.step import LRAStep
from tasks.lra.task import LRA, SORT_POOL

BUCKETS = 4
"""Widths of texts that are sorted by length: for each a step is compiled, half a minute, and
captured. Batches that are not sorted have one width: nearly all hold a long row."""
SEEDS = range(3)
FASTER = 4
"""Times the recipe's learning rate: short expressions are learned better at it."""
GENTLER = 0.25
"""Times the small recipe's learning rate: HGRN2 over the image learns Pathfinder by it. Every mixer
has it, so that none is favoured."""
PATHX_BATCH = 16
"""Of a timed step: the recipe's 256 are 4 million tokens."""
SMOKE_LISTOPS = Data(arena="listops", source="generated", examples=(320, 40, 40))
SMOKE_PATHFINDER = Data(
    arena="pathfinder32", source="generated", examples=(320, 40, 40), difficulty="easy"
)
PATHFINDERS = (160_000, 20_000, 20_000)
SIZES = {"listops": (96_000, 2_000, 2_000), "pathfinder32": PATHFINDERS, "path_x": PATHFINDERS}
COLOURED = Data(arena="image", colour=True, augment=True)
"""Image as HGRN1's and HGRN2's code has it."""
PUBLISHED_SCANS: dict[str, Scan] = {
    "image": "2d_parallel",
    "pathfinder32": "2d_parallel",
    "path_x": "2d_series",
}
"""HGRN2's, of images."""
PATHX_EPOCHS = 5
"""Of the recipe's 200, whose warm-up would take 240."""


def lra(device: torch.device) -> list[Task]:
    """The six tasks by the published recipes: HGRN2's for every mixer, HGRN1's for HGRN1 as well.

    Three seeds of HGRN2, one of the others. HGRN2 and HGRN1 scan images as each recipe's code does,
    and have Image also as it does, in colour and augmented. Where the official files are absent
    ListOps, Pathfinder and Path-X are generated, and the cells of Text, Retrieval and Image say
    what is missing. Days of one GPU: choose with --where 'arena == "text"'.
    """
    cells: list[LRA] = []
    for arena, setting in recipes.HGRN2_PAPER.items():
        data = arena_data(arena)
        for mixer in lra_mixers(device, setting, PUBLISHED_SCANS.get(arena, "1d")):
            seeds = SEEDS if mixer.name == "hgrn2" else SEEDS[:1]
            cells += [recipes.hgrn2_paper(mixer, data, seed) for seed in seeds]
    hgrn2, _ = hgrns(device, recipes.HGRN2_PAPER["image"], PUBLISHED_SCANS["image"])
    cells += [recipes.hgrn2_paper(hgrn2, COLOURED, seed) for seed in SEEDS]
    for arena, setting in recipes.HGRN1_PAPER.items():
        _, hgrn1 = hgrns(device, setting, "1d" if arena in TEXTS else "2d_parallel")
        several = [arena_data(arena), *([COLOURED] if arena == "image" else [])]
        cells += [recipes.hgrn1_paper(hgrn1, data) for data in several]
    return [on(device, cell) for cell in cells]


def lra_s4_shape(device: torch.device) -> list[Task]:
    """The six tasks at S4's depth, width and optimiser, in fp32: five mixers, one seed.

    All along the sequence; HGRN2's state is as wide as HGRN1's real one (expand ratio 1). Official
    files, or generated ones as in `lra`. Days of one GPU: choose with --where 'arena == "text"'.
    """
    return [
        on(device, recipes.s4_shape(mixer, arena_data(arena)))
        for arena, setting in recipes.S4_SHAPE.items()
        for mixer in lra_mixers(device, setting)
    ]


def lra_smoke(device: torch.device) -> list[Task]:
    """Five mixers on a little ListOps and easy Pathfinder, made on the spot, in minutes on a CPU.

    320 training examples, two layers of width 32: it shows that all runs, and ranks no mixer.
    """
    return [
        on(device, recipes.smoke(mixer, data))
        for data in (SMOKE_LISTOPS, SMOKE_PATHFINDER)
        for mixer in lra_mixers(
            device, recipes.SMOKE[data.arena], d_state=4 if device.type == "cpu" else 16
        )
    ]


def lra_listops(device: torch.device) -> list[Task]:
    """ListOps by HGRN2's published recipe, three seeds for HGRN2, one for the others.

    And HGRN2 with a layer of its own each way, which is no published model, and both of these at
    four times the learning rate, a seed each; and Mamba with RMS norms, its own: its layer raises a
    large token to up to the fifth power, and a batch norm lets one through. Its batches are sorted,
    as everywhere without a batch norm. The official files where they are, else generated ones of
    their size: the record says which.
    """
    setting = recipes.HGRN2_PAPER["listops"]
    data = arena_data("listops")
    published = [
        on(device, recipes.hgrn2_paper(mixer, data, seed))
        for seed in SEEDS
        for mixer in lra_mixers(device, setting)
        if seed == 0 or mixer.name == "hgrn2"
    ]
    apart = [
        cell.model_copy(update={"directions": "apart_sum"})
        for cell in published
        if cell.mixer.name == "hgrn2"
    ]
    faster = [
        changed(cell, "training", {"lr": FASTER * cell.training.lr})
        for cell in (published[0], apart[0])
    ]
    pooled = {"sort_pool": SORT_POOL}
    normed = [
        # `on` once more: batches of other widths.
        on(device, changed(cell, "backbone", {"norm": "rms"}).model_copy(update=pooled))
        for cell in published
        if cell.mixer.name == "mamba"
    ]
    return [*published, *apart, *faster, *normed]


def lra_pathfinder(device: torch.device) -> list[Task]:
    """Pathfinder at 32 pixels by our small recipe, three seeds, in one and two dimensions.

    HGRN2 and HGRN1 along the sequence and over the image, and attention, each at the recipe's
    learning rate and at a quarter of it. And, a seed each, HGRN2 and HGRN1 along the sequence with
    attention's positions, which tell a pixel its column. The official files where they are, else
    generated ones of their size: the record says which.
    """
    setting = recipes.SMALL["pathfinder32"]
    data = arena_data("pathfinder32")
    along, over = (hgrns(device, setting, scan) for scan in ("1d", "2d_parallel"))
    attention = [mixer for mixer in lra_mixers(device, setting) if mixer.name == "attention"]
    chosen = [*along, *attention, *over]
    cells = [on(device, recipes.small(mixer, data, seed)) for seed, mixer in product(SEEDS, chosen)]
    placed = [
        changed(on(device, recipes.small(mixer, data)), "backbone", {"positions": "sinusoidal"})
        for mixer in along
    ]
    gentler = [changed(cell, "training", {"lr": GENTLER * setting.lr}) for cell in cells]
    return [*cells, *placed, *gentler]


def lra_pathfinder_paper(device: torch.device) -> list[Task]:
    """Pathfinder at 32 pixels by HGRN2's published recipe, 100 epochs, over the image.

    HGRN2, as published, and HGRN1 by the same recipe (its own is longer, and in fp32). The official
    files where they are, else generated ones of their size: the record says which.
    """
    setting, data = recipes.HGRN2_PAPER["pathfinder32"], arena_data("pathfinder32")
    mixers = hgrns(device, setting, PUBLISHED_SCANS["pathfinder32"])
    return [on(device, recipes.hgrn2_paper(mixer, data)) for mixer in mixers]


def lra_pathx(device: torch.device) -> list[Task]:
    """The first epochs of Path-X by HGRN2's published recipe: a curve, and no claim beyond it.

    HGRN2 and HGRN1 along the sequence and over the image, as HGRN2's has it. The official files
    where they are, else generated ones of their size: the record says which.
    """
    setting = recipes.HGRN2_PAPER["path_x"]
    data = arena_data("path_x")
    over = PUBLISHED_SCANS["path_x"]
    mixers = [*hgrns(device, setting, "1d"), *hgrns(device, setting, over)]
    cells = [on(device, recipes.hgrn2_paper(mixer, data)) for mixer in mixers]
    return [changed(cell, "training", {"epochs": PATHX_EPOCHS}) for cell in cells]


def lra_pathx_step(device: torch.device) -> list[Task]:
    """Time and memory of a training step on Path-X's 16,384 pixels, every mixer at 6 layers of 32.

    HGRN2's published shape with 16 images a batch, along the sequence; HGRN2 and HGRN1 also over
    the image, and on a GPU GLA and Mamba also by the published kernels. The images are noise.
    """
    return step_times(device, "path_x", batch=PATHX_BATCH)


def lra_pathfinder_step(device: torch.device) -> list[Task]:
    """Time and memory of a training step on Pathfinder's 1,024 pixels, as HGRN2's recipe has it.

    Six layers of 128 and 128 images a batch, every mixer along the sequence; HGRN2 and HGRN1 also
    over the image, as published, and on a GPU GLA and Mamba also by the published kernels. The
    images are noise.
    """
    return step_times(device, "pathfinder32")


def step_times(device: torch.device, arena: str, batch: int | None = None) -> list[Task]:
    """Steps of HGRN2's recipe, three trials; `batch` None: the recipe's."""
    setting, data = recipes.HGRN2_PAPER[arena], Data.model_validate({"arena": arena})
    chosen = [*lra_mixers(device, setting), *hgrns(device, setting, PUBLISHED_SCANS[arena])]
    if device.type == "cuda":
        peers = {"gla": "fla", "mamba": "mamba_ssm"}
        chosen += [
            mixer.model_copy(update={"impl": peers[mixer.name]})
            for mixer in chosen
            if mixer.name in peers
        ]
    return [
        step_of(on(device, recipes.hgrn2_paper(mixer, data)), trial=trial, batch=batch)
        for trial in range(3)
        for mixer in chosen
    ]


def arena_data(arena: str) -> Data:
    """The official files where they are at the root of the data, else generated ones of that size,
    which a cell makes where they are not. Of what cannot be generated, the official ones."""
    if arena not in SIZES or official_is_there(arena):
        return Data.model_validate({"arena": arena})
    return Data.model_validate({"arena": arena, "source": "generated", "examples": SIZES[arena]})


def step_of(task: LRA, *, trial: int, batch: int | None) -> LRAStep:
    """The time of a training step of this cell, on noise."""
    same = {name: getattr(task, name) for name in LRA.model_fields if name != "name"}
    training = task.training.model_copy(update={"batch": batch or task.training.batch})
    data = task.data.model_copy(update={"source": "random", "examples": None, "version": 1})
    return LRAStep.model_validate(same | {"data": data, "training": training, "trial": trial})


def changed(task: LRA, part: Literal["training", "backbone"], settings: dict[str, Any]) -> LRA:
    """The cell with other settings of that part of it."""
    return task.model_copy(update={part: getattr(task, part).model_copy(update=settings)})


def on(device: torch.device, task: LRA) -> LRA:
    """The cell as it runs fastest on the device; its record says so."""
    if device.type != "cuda":
        return task
    fast = {"engine": "graph", "compiled": True}
    training = task.training.model_copy(update=fast)
    buckets = None
    if task.data.arena in TEXTS:
        buckets = BUCKETS if task.sort_pool > 1 else 1
    return task.model_copy(update={"training": training, "buckets": buckets})


def hgrns(device: torch.device, setting: recipes.Setting, scan: Scan) -> list[Mixer]:
    """HGRN2 and HGRN1 of `lra_mixers`, which alone scan images."""
    return [m for m in lra_mixers(device, setting, scan) if isinstance(m, HGRN2 | HGRN1)]


def lra_mixers(
    device: torch.device, setting: recipes.Setting, scan: Scan = "1d", d_state: int = 16
) -> list[Mixer]:
    """The five mixers at a recipe's width; HGRN2 and HGRN1 as published for the arena; on a GPU
    by our kernels, attention by torch's. `scan` is HGRN2's and HGRN1's."""
    heads = max(1, setting.d_model // 32)
    return [
        HGRN2(
            preset="biased",
            expand_ratio=setting.expand_ratio,
            lower_bound="exclusive",
            scan=scan,
            impl=our_impl(device),
        ),
        HGRN1(
            kind="complex",
            separate_theta=True,
            lower_bound="exclusive",
            scan=scan,
            impl=our_impl(device),
        ),
        GLA(n_heads=heads, impl=our_impl(device)),
        Mamba(d_state=d_state, impl=our_impl(device)),
        Attention(n_heads=heads),
    ]
