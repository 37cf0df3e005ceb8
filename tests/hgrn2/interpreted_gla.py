"""GLA on HGRN2's kernels, with a free key, under Triton's interpreter, against the fp64 oracle.

Run as interpreted_kernels.py, and to the bar that kernel_inputs.py derives. What the free key does
not change is tested there.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from torch import Tensor

import hgrn2
from hgrn2.kernels import chunks, gla_ops
from hgrn2.kernels.settings import Settings
from tests.hgrn2.gate_kernel import check_log2_free_gate
from tests.hgrn2.gla_inputs import NAMES, draw, kernels, oracle
from tests.hgrn2.kernel_inputs import check

assert os.environ.get("TRITON_INTERPRET") == "1"


def in_groups(monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    table = dataclasses.replace(chunks.table_of(torch.empty(16), torch.empty(16)), group=group)
    monkeypatch.setattr(chunks, "table_of", lambda _q, _v: table)


def y_of(case: dict[str, Tensor], **changed: Tensor) -> Tensor:
    q, key, z, v, state = ((case | changed)[name] for name in NAMES)
    return gla_ops.gla(q, key, z, v, state=state)[0]


@pytest.mark.parametrize(
    ("t", "k", "v", "regime"),
    [
        (1, 16, 16, "ordinary"),
        (15, 16, 32, "spread"),
        (17, 32, 16, "open"),
        (63, 16, 16, "nearly"),
        (64, 16, 64, "ordinary"),
        (65, 64, 16, "ordinary"),
        (100, 16, 16, "resets"),
        (100, 16, 16, "low"),
        (129, 32, 16, "leaning"),
        (129, 16, 16, "ravine"),
        (70, 16, 16, "held"),
    ],
)
def test_results_and_gradients(t, k, v, regime):
    case = draw(1, t, 2, k, v, regime)
    check(kernels(case), oracle(case))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_open_gates_between_closed_ones_keep_their_digits(bidirectional):
    """Where f is below 2^-24, rounding in dz would be most of it."""
    case = draw(1, 200, 1, 64, 64, "resets")
    found, expected = (form(case, bidirectional=bidirectional) for form in (kernels, oracle))
    check(found, expected)
    assert not found["dz"][case["z"] < -400].any()


def test_the_log_gate_has_all_its_digits():
    check_log2_free_gate("cpu", fast=False)


@pytest.mark.parametrize("regime", ["ordinary", "leaning", "ravine"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_nothing_is_left_unwritten(regime, bidirectional, monkeypatch):
    """Fresh memory holds NaN, and flags that are set; lengths too."""
    ordinary = torch.Tensor.new_empty

    def poisoned(x: Tensor, *shape, **options) -> Tensor:
        fresh = ordinary(x, *shape, **options)
        return fresh.fill_(torch.nan if fresh.is_floating_point() else 77)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    case = draw(2, 129, 2, 16, 16, regime)
    options = {"lengths": torch.tensor([129, 70]), "bidirectional": bidirectional}
    check(kernels(case, **options), oracle(case, **options))


def test_gates_that_let_nothing_through():
    """All of dz lies below the rounding of the sums that it is the difference of."""
    case = draw(1, 70, 2, 16, 16, "closed")
    found = kernels(case)
    check(found, oracle(case), skip=("dz",))
    assert found["dz"].abs().max() < 1e-4


@pytest.mark.parametrize("regime", ["ordinary", "leaning"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths(regime, bidirectional):
    """What stands at padding reaches nothing, a key of any size, and no gradient reaches it."""
    lengths = torch.tensor([100, 37, 1])
    case = draw(3, 100, 1, 16, 32, regime)
    found = kernels(case, lengths=lengths, bidirectional=bidirectional)
    check(found, oracle(case, lengths=lengths, bidirectional=bidirectional))
    for name in ("y", "dq", "dkey", "dz", "dv"):
        assert not found[name][1, 37:].any(), name
    spoilt = dict(case)
    for name in ("q", "key", "z", "v"):
        spoilt[name] = case[name].clone()
        spoilt[name][1, 37:] = torch.nan
    for name, x in kernels(spoilt, lengths=lengths, bidirectional=bidirectional).items():
        assert torch.equal(x, found[name]), name


@pytest.mark.parametrize(("t", "regime"), [(65, "ordinary"), (33, "nearly"), (65, "ravine")])
def test_both_directions(t, regime):
    case = draw(2, t, 2, 16, 32, regime)
    check(kernels(case, bidirectional=True), oracle(case, bidirectional=True))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_segments_agree_with_one_walk(bidirectional, monkeypatch):
    case = draw(1, 192, 1, 16, 16, "ordinary")
    expected = oracle(case, bidirectional=bidirectional)
    monkeypatch.setattr(Settings, "split", lambda _self, _programs, _chunks: (2, 2))
    check(kernels(case, bidirectional=bidirectional), expected)
    monkeypatch.setattr(Settings, "split", lambda _self, _programs, chunks: (chunks, 1))
    check(kernels(case, bidirectional=bidirectional), expected)


@pytest.mark.parametrize("regime", ["ordinary", "leaning", "ravine"])
def test_rows_in_groups_of_tokens(monkeypatch, regime):
    """What bf16 runs on a GPU: another order of rows, sums over tokens from differences of sums."""
    in_groups(monkeypatch, 4)
    case = draw(2 if regime == "ordinary" else 1, 100, 1, 16, 32, regime)
    # Sums of a chunk's 64 log gates of up to 126 bits, at 2^-24 of their size.
    check(kernels(case), oracle(case), scale=64)
    check(kernels(case, bidirectional=True), oracle(case, bidirectional=True), scale=64)


@pytest.mark.parametrize("regime", ["ordinary", "leaning", "held"])
@pytest.mark.parametrize("group", [1, 4])
def test_strictly_causal_bit_for_bit(monkeypatch, regime, group):
    """Later tokens do not move an output by rounding either, whichever path they send it on."""
    in_groups(monkeypatch, group)
    case = draw(1, 66, 1, 16, 16, regime)
    y = y_of(case)
    for cut, logit in ((20, -1000.0), (20, 30.0), (65, -1000.0)):
        changed = {name: case[name].clone() for name in ("key", "z", "v")}
        for name, number in (("key", 3.0), ("z", logit), ("v", 7.0)):
            changed[name][:, cut:] = number
        found = y_of(case, **changed)
        assert torch.equal(found[:, :cut], y[:, :cut])
        assert not torch.equal(found[:, cut:], y[:, cut:])


@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e20])
@pytest.mark.parametrize("regime", ["open", "nearly", "leaning"])
def test_gradients_of_any_size(regime, scale):
    """From channels that are all but open to those that decay by a little less than what makes a
    chunk deep, and by more."""
    case = draw(1, 129, 2, 16, 16, regime)
    case |= {name: scale * case[name] for name in ("dy", "dlast")}
    check(kernels(case), oracle(case))


@pytest.mark.parametrize("scale", [1e-6, 1e3])
@pytest.mark.parametrize("regime", ["nearly", "leaning"])
def test_keys_of_other_sizes(regime, scale):
    case = draw(1, 100, 2, 16, 16, regime)
    case["key"] *= scale
    check(kernels(case), oracle(case))


@pytest.mark.filterwarnings("ignore:(invalid value|All-NaN slice) encountered:RuntimeWarning")
@pytest.mark.parametrize("name", ["q", "key", "z", "v"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_nan_comes_out_as_one(monkeypatch, name, deep):
    """A GPU's own has all bits but the sign, which TF32's rounding would turn into a zero."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    case = draw(1, 70, 1, 16, 16, "leaning" if deep else "open")
    case[name][:, 20] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    y = y_of(case)
    # Of q nothing is kept for later tokens. The others may reach earlier ones too: 0 times a NaN.
    assert y[:, 20 if name == "q" else slice(20, None)].isnan().all()


def test_views_of_any_strides():
    """Parts of one projection, and a key of other strides than the rest."""
    case = draw(2, 70, 2, 16, 32, "ordinary")
    expected = kernels(case)
    fused = torch.cat([case[name] for name in ("q", "z", "v")], -1)
    views = dict(zip(("q", "z", "v"), fused.split([16, 16, 32], -1), strict=True))
    views["key"] = case["key"].transpose(0, 2).contiguous().transpose(0, 2)
    leaves = {name: x.detach().requires_grad_() for name, x in (case | views).items()}
    assert not leaves["key"].is_contiguous()
    assert leaves["key"].stride() != leaves["q"].stride()
    q, key, z, v, state = (leaves[name] for name in NAMES)
    y, last = gla_ops.gla(q, key, z, v, state=state)
    loss = (y * case["dy"]).sum() + (last * case["dlast"]).sum()
    gradients = torch.autograd.grad(loss, [leaves[name] for name in NAMES])
    found = {"y": y, "last": last}
    found |= {f"d{name}": x for name, x in zip(NAMES, gradients, strict=True)}
    for name, x in expected.items():
        assert torch.equal(found[name], x), name
    wide = torch.stack([case["key"], case["key"]], -1)[..., 0]
    assert torch.equal(y_of(case, key=wide), y)


def test_no_final_gradient_and_no_state():
    case = draw(1, 70, 1, 16, 16, "ordinary")
    found = []
    for run, dtype in ((gla_ops.gla, torch.float32), (hgrn2.gla, torch.float64)):
        leaves = [case[name].to(dtype).requires_grad_() for name in NAMES[:4]]
        loss = (run(*leaves)[0] * case["dy"]).sum()
        names = ("dq", "dkey", "dz", "dv")
        found.append(dict(zip(names, torch.autograd.grad(loss, leaves), strict=True)))
    check(*found)


def test_step_follows_the_oracle_in_place():
    case = draw(2, 1, 2, 16, 32, "ordinary")
    expected = oracle(case)
    one, state = [case[name][:, 0] for name in NAMES[:4]], case["state"].clone()
    y, found = gla_ops.gla_step(*one, state)
    assert found is state
    check({"y": y, "last": state}, {"y": expected["y"][:, 0], "last": expected["last"]})


@pytest.mark.parametrize("bidirectional", [False, True])
def test_compiled_without_a_break(bidirectional):
    """Custom operators there, a plain autograd function in eager mode: the same bits."""
    case = draw(2, 70, 1, 16, 16, "ordinary")
    lengths = torch.tensor([70, 37])

    def loss(q, key, z, v, state):
        if bidirectional:
            return (gla_ops.gla_bidirectional(q, key, z, v, lengths=lengths) * case["dy"]).sum()
        y, last = gla_ops.gla(q, key, z, v, state=state, lengths=lengths)
        return (y * case["dy"]).sum() + (last * case["dlast"]).sum()

    found = []
    for run in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaves = [case[name].clone().requires_grad_() for name in NAMES]
        run(*leaves).backward()
        found.append([x.grad for x in leaves if x.grad is not None])
    assert len(found[0]) == (4 if bidirectional else 5)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_a_compiled_step_is_the_eager_one():
    case = draw(2, 1, 2, 16, 32, "ordinary")
    one, found = [case[name][:, 0] for name in NAMES[:4]], []
    for run in (gla_ops.gla_step, torch.compile(gla_ops.gla_step, backend="aot_eager")):
        state = case["state"].clone()
        y, _ = run(*one, state)
        found.append((y, state))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_the_custom_operators_are_what_they_say():
    """Shapes, strides and mutations, as torch checks them; without gradients too."""
    case = draw(2, 70, 1, 16, 32, "ordinary")
    q, key, z, v, state = (case[name] for name in NAMES)
    parts = ("test_schema", "test_faketensor")
    inputs = (q, z, v, key, state, torch.tensor([70, 37]))
    torch.library.opcheck(torch.ops.hgrn2.gla, (*inputs, False, False), test_utils=parts)
    y, last, *kept = torch.ops.hgrn2.gla(*inputs, False, True)
    saved = (*inputs[:4], inputs[5], *kept, torch.randn_like(y), torch.randn_like(last))
    torch.library.opcheck(torch.ops.hgrn2.gla_backward, (*saved, False, True), test_utils=parts)
    leaves = [x.clone().requires_grad_() for x in inputs[:5]]
    torch.library.opcheck(torch.ops.hgrn2.gla, (*leaves, inputs[5], False, True))
    one = [x[:, 0] for x in inputs[:4]]
    torch.library.opcheck(torch.ops.hgrn2.gla_step, (*one, state.clone()), test_utils=parts)


def test_bad_input_is_named():
    case = draw(1, 4, 1, 16, 16, "ordinary")
    q, key, z, v, state = (case[name] for name in NAMES)
    with pytest.raises(ValueError, match="k=12: impl='triton' takes widths 16, 32"):
        gla_ops.gla(q[..., :12], key[..., :12], z[..., :12], v)
    with pytest.raises(ValueError, match="v=8: impl='triton' takes widths 16, 32"):
        gla_ops.gla_bidirectional(q, key, z, v[..., :8])
    with pytest.raises(ValueError, match=r"q, key, z, v are torch\.float32, torch\.float16, .*one"):
        gla_ops.gla(q, key.half(), z, v)
    with pytest.raises(ValueError, match="state is"):
        gla_ops.gla_step(q[:, 0], key[:, 0], z[:, 0], v[:, 0], state.double())
