"""The Long Range Arena (arXiv 2011.04006): its data, and the task made of them.

A file a task: `listops`, `text`, `retrieval`, `image`, `pathfinder` (Path-X is its 128 pixels),
each with one loader, `load_<task>(root, convention=...) -> examples.Dataset`. `examples` says what
a dataset is and makes its batches; `files` finds files and tells what is wrong with them;
`generate/` makes ListOps and Pathfinder in the published format.

`data` says which of them a cell asks for, and accepts no others in their place; `batches` feeds
them at a few widths; `model` is the classifier around a mixer, `task` the task, `step` the time of
its training step, `recipes` the published settings and ours.

This file imports nothing, so that a process that only decodes images starts without torch.
"""
