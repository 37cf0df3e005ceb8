"""The Long Range Arena (arXiv 2011.04006): its data.

A file a task: `listops`, `text`, `retrieval`, `image`, `pathfinder` (Path-X is its 128 pixels),
each with one loader, `load_<task>(root, convention=...) -> examples.Dataset`. `examples` says what
a dataset is and makes its batches; `files` finds files and tells what is wrong with them;
`generate/` makes ListOps and Pathfinder in the published format.

What a task built on this does:
- `dataset = load_listops()`; show `dataset.describe()` and record `dataset.provenance`,
  `dataset.convention` and `dataset.validation`. A `files.MissingData` is the reason why a cell
  cannot run here.
- `examples = dataset.train.to(device)`: small integers on the device, once.
- `for rows in training_batches(examples.lengths, batch, seed=seed, epoch=epoch)`:
  `ids, lengths = examples.inputs.padded(rows, width)` and `examples.labels[rows]`; for Retrieval
  also `examples.seconds`, padded to the same width, for the same encoder.
- `dataset.pixels` is not None where pixels are scalars and not ids.
- Score with `evaluation_batches`: it leaves out no example.

This file imports nothing, so that a process that only decodes images starts without torch.
"""
