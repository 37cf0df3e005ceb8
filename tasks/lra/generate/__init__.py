"""ListOps and Pathfinder by the published algorithms, in the published format.

`listops.write_listops` and `pathfinder.write_pathfinder` write files; `folders` makes them appear
whole; `workers` uses all cores. Pathfinder's parts: `strokes` (tables of a resolution), `streams`
(random numbers), `canvas` (placing and drawing dashes), `contours` (targets and distractors),
`rendering` (ink, markers, levels).
"""
