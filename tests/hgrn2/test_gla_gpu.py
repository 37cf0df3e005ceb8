"""GLA's Triton operator on a GPU against the fp64 oracle, to the bar of test_triton_gpu.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import hgrn2
from hgrn2.gate import gla_gate, gla_log_gate
from tests.hgrn2.gla_inputs import NAMES, draw, kernels, oracle
from tests.hgrn2.test_triton_gpu import TOLERANCE, WIDTHS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BF16 = torch.bfloat16
# A log gate's gradient is a difference of two sums of products.
WORSE = {"dz": 2}


def check(case: dict[str, Tensor], *, skip: tuple[str, ...] = (), **options) -> None:
    found, expected = kernels(case, **options), oracle(case, **options)
    assert found.keys() == expected.keys()
    errors = {
        name: ((found[name].double() - x).norm() / x.norm().clamp_min(1e-30)).item()
        for name, x in expected.items()
    }
    for name, error in errors.items():
        if name not in skip:
            assert error <= TOLERANCE[case["q"].dtype] * WORSE.get(name, 1), errors


def drawn(*size: int, regime: str = "ordinary", dtype: torch.dtype = BF16) -> dict[str, Tensor]:
    return draw(*size, regime, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("v", WIDTHS)
@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("regime", ["ordinary", "leaning"])
def test_every_entry_of_the_table(k, v, dtype, regime):
    check(drawn(2, 131, 2, k, v, regime=regime, dtype=dtype))


@pytest.mark.parametrize("t", [1, 2, 15, 16, 17, 63, 64, 65, 100, 127, 128, 129, 1000])
def test_every_length(t):
    check(drawn(1, t, 2, 64, 128))


@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("regime", "skip"),
    [
        *((name, ()) for name in ("spread", "open", "nearly", "resets", "ravine", "held")),
        # Every gate lies below 2^-24, where dz is 0.
        ("closed", ("dz",)),
        # Between open gates, rounding weighs too much in dz (hgrn2/README.md).
        ("low", ("dz",)),
    ],
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_gate(regime, skip, dtype, bidirectional):
    case = drawn(2, 200, 2, 64, 64, regime=regime, dtype=dtype)
    check(case, skip=skip, bidirectional=bidirectional)
    if regime == "closed":
        assert not kernels(case, bidirectional=bidirectional)["dz"].any()


@pytest.mark.parametrize("fast", [False, True])
def test_the_log_gate_has_all_its_digits(fast):
    from tests.hgrn2.gate_kernel import check_log2_free_gate

    check_log2_free_gate("cuda", fast=fast)


@pytest.mark.parametrize("regime", ["ordinary", "nearly", "leaning"])
@pytest.mark.parametrize(("k", "v"), [(32, 64), (64, 128), (128, 256)])
def test_both_directions_and_lengths(k, v, regime):
    case = drawn(2, 200, 2, k, v, regime=regime)
    check(case, bidirectional=True)
    lengths = torch.tensor([200, 70], device="cuda")
    check(case, bidirectional=True, lengths=lengths)
    check(case, lengths=lengths)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_lengths_and_directions(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    b, t, h = pick(1, 3), pick(1, 400), pick(1, 3)
    case = draw(b, t, h, 64, 64, "spread", dtype=BF16, device="cuda", seed=seed)
    lengths = torch.randint(1, t + 1, (b,), generator=generator).cuda()
    check(case, lengths=lengths, bidirectional=bool(seed % 2))


def test_segments():
    """One long sequence, whose walk is cut into segments."""
    check(drawn(1, 8192, 1, 64, 64))


@pytest.mark.parametrize("regime", ["open", "nearly", "leaning"])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_gradients_of_any_size(scale, regime):
    case = drawn(2, 131, 2, 64, 64, regime=regime)
    case["dy"] = (scale * case["dy"].float()).bfloat16()
    check(case, bidirectional=True)


@pytest.mark.parametrize("regime", ["ordinary", "leaning"])
def test_strictly_causal_bit_for_bit(regime):
    case = drawn(1, 300, 2, 64, 64, regime=regime)
    q, key, z, v = (case[name] for name in NAMES[:4])
    y, _ = hgrn2.gla(q, key, z, v, impl="triton")
    for cut in (1, 20, 63, 64, 100, 299):
        changed, other = z.clone(), key.clone()
        changed[:, cut:], other[:, cut:] = -1000.0, 3.0
        found, _ = hgrn2.gla(q, other, changed, v, impl="triton")
        assert torch.equal(found[:, :cut], y[:, :cut]), cut


@pytest.mark.parametrize("regime", ["ordinary", "leaning"])
@pytest.mark.parametrize("name", ["q", "key", "z", "v"])
def test_a_nan_comes_out_as_one(name, regime):
    case = drawn(1, 130, 1, 64, 64, regime=regime)
    case[name][:, 20] = torch.nan
    y, _ = hgrn2.gla(*(case[name] for name in NAMES[:4]), impl="triton")
    assert y[:, 20 if name == "q" else slice(20, None)].isnan().all()


@pytest.mark.parametrize("regime", ["ordinary", "leaning"])
def test_the_same_bits_every_time_into_poisoned_memory(regime):
    case = drawn(2, 700, 4, 128, 128, regime=regime)
    first = kernels(case)
    for _ in range(3):
        poison = torch.full((1 << 27,), float("nan"), device="cuda")
        del poison
        for name, x in kernels(case).items():
            assert torch.equal(x, first[name]), name


def test_strided_views_of_one_projection():
    """As the layer has them: q, key and v of one product, z of another."""
    case = drawn(2, 100, 4, 64, 128)
    names, widths = ("q", "key", "v"), [256, 256, 512]
    fused = torch.cat([case[name].flatten(2) for name in names], -1).requires_grad_()
    views = [x.unflatten(-1, (4, -1)) for x in fused.split(widths, -1)]
    assert not views[1].is_contiguous()
    y, _ = hgrn2.gla(*views[:2], case["z"], views[2], impl="triton")
    leaves = [case[name].requires_grad_() for name in names]
    expected, _ = hgrn2.gla(*leaves[:2], case["z"], leaves[2], impl="triton")
    assert torch.equal(y, expected)
    y.backward(case["dy"])
    expected.backward(case["dy"])
    for found, x in zip(fused.grad.split(widths, -1), leaves, strict=True):
        assert torch.equal(found, x.grad.flatten(2))


def test_no_graph_break_and_a_graph_capture():
    case = drawn(1, 256, 2, 64, 64)
    args = [case[name] for name in NAMES[:4]]

    def call(q, key, z, v):
        return hgrn2.gla(q, key, z, v, impl="triton")[0]

    expected = call(*args)
    compiled = torch.compile(call, fullgraph=True)
    assert torch.equal(compiled(*args), expected)
    gradients = []
    for run in (call, compiled):
        leaves = [x.clone().requires_grad_() for x in args]
        run(*leaves).float().square().sum().backward()
        gradients.append([x.grad for x in leaves])
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call(*args)
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)


@pytest.mark.filterwarnings("ignore:.*ynchronization debug mode")
def test_the_host_never_waits():
    case = drawn(1, 256, 2, 64, 64)
    kernels(case)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels(case)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("batch", [1, 64])
def test_steps_continue_a_sequence(batch):
    case = drawn(batch, 8, 2, 64, 128)
    expected, state = oracle(case), case["state"].clone()
    for t in range(8):
        one = [case[name][:, t] for name in NAMES[:4]]
        y, found = hgrn2.gla_step(*one, state, impl="triton")
        assert found is state
        error = (y.double() - expected["y"][:, t]).norm() / expected["y"][:, t].norm()
        assert error <= 2**-8
    assert (state.double() - expected["last"]).norm() <= 1e-5 * expected["last"].norm()


@pytest.mark.usefixtures("room_on_gpu")
def test_more_than_2_31_elements():
    """The last row of a batch whose tensors hold more elements than an int32 counts."""
    b, t, h, k = 17, 65536, 16, 128
    small = drawn(1, 128, h, k, 16)
    names = ("q", "key", "z", "v")
    args = [small[name] for name in names]
    wide = [x.new_zeros(b, t, h, x.shape[-1]) for x in args]
    for x, one in zip(wide, args, strict=True):
        x[-1, -128:] = one[0]
    assert wide[0].numel() > 2**31
    y, _ = hgrn2.gla(*wide, impl="triton")
    expected, _ = hgrn2.gla(*args, impl="triton")
    assert torch.equal(y[-1, -128:], expected[0])


def test_no_drift_over_a_long_sequence():
    """Almost open gates over 131,072 tokens: an error in log f would add up."""
    case = drawn(1, 131072, 1, 16, 16)
    case["z"] = (0.5 * case["z"].float() + 9).bfloat16()
    q, key, z, v, state = (case[name] for name in NAMES)
    _, last = hgrn2.gla(q, key, z, v, state=state, impl="triton")
    G = gla_log_gate(z.double()).cumsum(1)
    whole = G[:, -1:]
    carried = key.double() * (whole - G).exp()
    S = torch.einsum("bthk,bthv->bhkv", carried, v.double())
    S += whole.exp().squeeze(1)[..., None] * state.double()
    assert gla_gate(z).min() > 0.99
    assert (last.double() - S).norm() <= 2**-8 * S.norm()


def test_a_first_call_compiles_the_backward_too(monkeypatch):
    """A kind of call that no other test makes: 5 heads of 32 keys and 256 values in fp16."""
    from triton import knobs

    case = drawn(2, 100, 5, 32, 256, dtype=torch.float16)
    q, key, z, v = (case[name].requires_grad_() for name in NAMES[:4])
    y, _ = hgrn2.gla(q, key, z, v, impl="triton")
    compiled = []
    monkeypatch.setattr(
        knobs.compilation, "listener", lambda src, **_: compiled.append(src.fn.fn.__name__)
    )
    (y * case["dy"]).sum().backward()
    assert key.grad is not None
    assert compiled == []
