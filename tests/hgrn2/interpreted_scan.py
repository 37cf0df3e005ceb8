"""The diagonal scan's kernels under Triton's interpreter, against the fp64 oracle.

Run by test_triton_interpreter.py with TRITON_INTERPRET=1, which must be set before triton is
imported. fp32 only: bf16 takes assembly, which is not interpreted. scan_inputs.py derives the bar.
"""

from __future__ import annotations

import os

import pytest
import torch

from hgrn2.gate import gate
from hgrn2.kernels import narrow
from hgrn2.kernels import scan_ops as ops
from hgrn2.kernels.scan_heads import NONE, Heads
from hgrn2.kernels.scan_settings import ScanLaunch, ScanSettings, border
from hgrn2.reference import gated_bidirectional, gated_recurrent
from tests.hgrn2.scan_inputs import check, draw, error, run

assert os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=[1, 4], ids=["one_warp", "four_warps"])
def warps(request, monkeypatch):
    """Both ways through the kernels: a warp alone, and warps that take turns in time."""

    def table(*_args, turn: bool) -> ScanSettings:
        launches = (ScanLaunch(64, request.param, rows) for rows in (16, 16, border(turn)))
        return ScanSettings(*launches)

    monkeypatch.setattr(ops, "scan_settings", table)
    return request.param


@pytest.mark.usefixtures("warps")
@pytest.mark.parametrize("turn", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("both", [False, True], ids=["causal", "both"])
def test_every_gate_and_bound(turn, both):
    """35 channels: every regime with every bound."""
    check(ops, draw(1, 20, 35, turn=turn, regime=None, bound=None), both=both)


@pytest.mark.usefixtures("warps")
@pytest.mark.parametrize("t", [1, 17, 65])
def test_every_length(t):
    check(ops, draw(1, t, 2, turn=t == 17))


@pytest.mark.usefixtures("warps")
@pytest.mark.parametrize("turn", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("both", [False, True], ids=["causal", "both"])
def test_lengths(turn, both):
    lengths = torch.tensor([9, 0])
    found = check(ops, draw(2, 20, 2, turn=turn), lengths=lengths, both=both)
    for name in ("h", "dv", "dz"):
        assert not found[name][0, 9:].any()
        assert not found[name][1].any()


def test_one_angle_for_both_directions():
    case = draw(1, 20, 3, turn=True)
    del case["theta_backward"]
    check(ops, case, both=True)


@pytest.mark.parametrize("turn", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("both", [False, True], ids=["causal", "both"])
def test_segments(warps, monkeypatch, turn, both):
    """The sequence ends within the last segment but one, or within the last."""
    t, split, length = (40, (3, 16), 25) if warps == 1 else (80, (2, 64), 70)
    monkeypatch.setattr(ScanLaunch, "split", lambda *_: split)
    check(ops, draw(1, t, 2, turn=turn), both=both, lengths=torch.tensor([length]))


def test_the_table_as_it_is():
    """Several programs, the last of them not full."""
    check(ops, draw(1, 20, 70, turn=True))
    check(ops, draw(1, 20, 70))


def test_strided_inputs_of_one_projection():
    case = draw(1, 20, 3)
    fused = torch.cat([case["v"], case["z"]], -1)
    v, z = fused.split(3, -1)
    assert not v.is_contiguous()
    found, _ = ops.hgrn1(v, z, case["bound"])
    assert torch.equal(found, ops.hgrn1(case["v"], case["z"], case["bound"])[0])


def test_imaginary_parts_in_a_plane_of_their_own():
    case = draw(1, 20, 3, turn=True)
    planes = {**case, **{name: case[name].mT.contiguous().mT for name in ("v", "dh")}}
    assert planes["v"].stride()[-2:] == (1, 3)
    found, expected = run(ops, planes), run(ops, case)
    assert all(torch.equal(x, expected[name]) for name, x in found.items())


@pytest.mark.parametrize("turn", [False, True], ids=["real", "complex"])
def test_strictly_causal_bit_for_bit(warps, turn):
    """Within a step, and in the next one."""
    t = 34 if warps == 1 else 70
    case = draw(1, t, 3, turn=turn)
    v, z, bound, theta = (case.get(name) for name in ("v", "z", "bound", "theta"))
    h, _ = ops.hgrn1(v, z, bound, theta=theta)
    for cut, logit in ((5, -60.0), (20, 30.0), (t - 1, -60.0)):
        changed, other = z.clone(), v.clone()
        changed[:, cut:], other[:, cut:] = logit, 7.0
        found, _ = ops.hgrn1(other, changed, bound, theta=theta)
        assert torch.equal(found[:, :cut], h[:, :cut])
        assert not torch.equal(found[:, cut:], h[:, cut:])


def test_only_the_last_state_is_differentiated():
    case = draw(1, 20, 3)
    leaf = case["z"].clone().requires_grad_()
    ops.hgrn1(case["v"], leaf, case["bound"])[1].sum().backward()
    bare = {**case, "state": 0 * case["state"]}
    expected = run(ops, {**bare, "dh": 0 * case["dh"], "dlast": 0 * case["dlast"] + 1})
    assert torch.equal(leaf.grad, expected["dz"])


def test_nothing_is_kept_where_nothing_is_differentiated():
    case = draw(1, 20, 3)
    inputs = (case["v"], case["z"], case["bound"], *5 * [None], 0)
    kept, left = (ops._forward(*inputs, False, keep) for keep in (True, False))
    assert torch.equal(kept[0], left[0])
    assert kept[2].shape == (1, 2, 3)
    assert left[2].numel() == 0


@pytest.mark.parametrize("heads", [NONE, Heads(2, 3, 4)])
@pytest.mark.parametrize("both", [False, True], ids=["causal", "both"])
def test_the_operators_shapes_without_data(both, heads):
    case = draw(1, 4, 3, turn=True)
    names = ("v", "z", "bound", "theta", "theta_backward")
    leaves = [*(case[name].requires_grad_() for name in names), None]
    if heads.count:
        keys, values = heads.count * heads.keys, heads.count * heads.values
        sizes = ((1, 4, values), (1, 4, keys), (heads.channels,), (1, 4, keys))
        v, z, bound, q = (torch.full(size, 0.5, requires_grad=True) for size in sizes)
        leaves = [v, z, bound, None, None, q]
    torch.library.opcheck(
        torch.ops.hgrn2.scan_forward.default,
        (*leaves, None, None, heads.keys if heads.count else 0, both, True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("k", "v", "split", "warps"),
    [
        (1, 1, None, 1),
        (3, 5, None, 1),
        (3, 5, (2, 16), 1),
        (4, 4, None, 1),
        (4, 4, None, 4),
        (4, 8, None, 1),
        (15, 3, None, 1),
    ],
    indirect=["warps"],
)
@pytest.mark.parametrize("both", [False, True], ids=["causal", "both"])
def test_narrow_keys(k, v, split, warps, both, monkeypatch):
    """HGRN2 with few keys a head, against the per-token loop in fp64; in two segments too."""
    generator = torch.Generator().manual_seed(k)
    b, t, h = 2, 70 if warps > 1 else 20 if split else 9, 3
    if split:
        monkeypatch.setattr(ScanLaunch, "split", lambda *_: split)
    shapes = [(b, t, h, k), (b, t, h, k), (b, t, h, v), (b, h, k, v)]
    q, z, x, state = (torch.randn(s, generator=generator) for s in shapes)
    bound = 0.5 * torch.rand(h, k, generator=generator)
    lengths = torch.tensor([t, 7])
    leaves = [y.clone().requires_grad_() for y in (q, z, x, bound, state)]
    wide = [y.double().requires_grad_() for y in (q, z, x, bound, state)]
    f, key = gate(wide[1], wide[3])
    if both:
        found = [narrow.hgrn2_narrow_bidirectional(*leaves[:4], lengths=lengths)]
        expected = [gated_bidirectional(wide[0], key, wide[2], f, lengths=lengths)]
    else:
        found = list(narrow.hgrn2_narrow(*leaves[:4], state=leaves[4], lengths=lengths))
        expected = list(gated_recurrent(wide[0], key, wide[2], f, state=wide[4], lengths=lengths))
    sum(y.square().sum() for y in found).backward()
    sum(y.square().sum() for y in expected).backward()
    inputs = zip(leaves, wide, strict=True)
    pairs = [*zip(found, expected, strict=True)]
    pairs += [(y.grad, true.grad) for y, true in inputs if true.grad is not None]
    for y, true in pairs:
        # The loss squares what was rounded: one rounding more than the bar's eight, doubled.
        assert error(y.detach(), true.detach()) <= 18 * 2**-24


@pytest.mark.parametrize("both", [False, True], ids=["causal", "both"])
def test_narrow_keys_under_a_compiler(both):
    """A second shape too: the compiler has symbols for its sizes then."""
    run = narrow.hgrn2_narrow_bidirectional if both else narrow.hgrn2_narrow
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for h, k, v in ((2, 4, 4), (3, 3, 5)):
        generator = torch.Generator().manual_seed(k)
        shapes = [(1, 3, h, k), (1, 3, h, k), (1, 3, h, v), (h, k)]
        leaves = [torch.rand(s, generator=generator).requires_grad_() for s in shapes]
        outputs = [call(*leaves) for call in (compiled, run)]
        y, expected = outputs if both else [y[0] for y in outputs]
        assert torch.equal(y, expected)
        found, true = (torch.autograd.grad(x.square().sum(), leaves) for x in (y, expected))
        assert all(torch.equal(a, b) for a, b in zip(found, true, strict=True))


def test_more_keys_than_a_group_are_refused():
    q = torch.zeros(1, 2, 1, 33)
    with pytest.raises(ValueError, match="q has 33 keys a head; the narrow scan takes up to 32"):
        narrow.hgrn2_narrow(q, q, q, torch.zeros(1, 33))


def test_a_narrow_step_follows_the_sequence():
    generator = torch.Generator().manual_seed(0)
    q, z = (torch.randn(2, 2, 3, 4, generator=generator) for _ in range(2))
    v = torch.randn(2, 2, 3, 6, generator=generator)
    bound, state = torch.full((3, 4), 0.2), torch.zeros(2, 3, 4, 6)
    y, last = narrow.hgrn2_narrow(q, z, v, bound)
    for t in range(2):
        found, given = narrow.hgrn2_narrow_step(q[:, t], z[:, t], v[:, t], bound, state)
        assert given is state
        assert torch.equal(found, y[:, t])
    assert torch.equal(state, last)


def test_bad_input_is_named():
    case = draw(1, 4, 3)
    with pytest.raises(ValueError, match=r"the inputs are torch\.float64 and torch\.float32"):
        ops.hgrn1(case["v"].double(), case["z"], case["bound"])
