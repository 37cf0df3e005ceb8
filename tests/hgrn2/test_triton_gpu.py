"""HGRN2's Triton operator on a GPU against the fp64 oracle.

The bar: the error of a result is at most twice that of the eager chunked reference on inputs of the
same dtype whose matrix products run in the same precision. That reference rounds its operands less
often, so the bound is stated in units of the products' rounding: 4 roundings of an operand.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hgrn2
from hgrn2.gate import gate
from hgrn2.reference import gated_bidirectional, gated_recurrent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WIDTHS = (16, 32, 64, 128, 256)
# bf16 and tf32 (fp16 runs in it) round at 2^-9 and 2^-11; three tf32 products at about 2^-21, below
# the error of an exponent of up to 126 bits in fp32, 5e-6.
TOLERANCE = {torch.bfloat16: 4 * 2**-9, torch.float16: 4 * 2**-11, torch.float32: 2e-5}
# A log gate's gradient is a difference of two sums of products, the bound's one of sums of those.
WORSE = {"dz": 2, "dbound": 4}


# Each 64 tokens decay by more than 112 bits on some channel: every chunk is deep.
CLOSED = {"scale": 6.0, "shift": -3.0, "bound": 0.05}
GATES = pytest.mark.parametrize("gates", [{}, CLOSED], ids=["open", "closed"])


def draw(b, t, h, k, v, dtype, *, scale=1.0, shift=0.0, bound=0.3, seed=0) -> dict[str, Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    return {
        "q": normal(b, t, h, k).to(dtype),
        "z": (scale * normal(b, t, h, k) + shift).to(dtype),
        "v": normal(b, t, h, v).to(dtype),
        "bound": torch.full((h, k), bound, device="cuda"),
        "state": normal(b, h, k, v),
        "dy": normal(b, t, h, v).to(dtype),
        "dlast": normal(b, h, k, v),
    }


def oracle(case: dict[str, Tensor], *, lengths=None, bidirectional=False) -> dict[str, Tensor]:
    """fp64, with dz and dbound by the closed form of the gate's derivative."""
    x = {name: tensor.double() for name, tensor in case.items()}
    f, key = gate(x["z"], x["bound"])
    leaves = [y.detach().requires_grad_() for y in (x["q"], key, x["v"], f, x["state"])]
    if bidirectional:
        y = gated_bidirectional(*leaves[:4], lengths=lengths)
        results, loss = {"y": y}, (y * x["dy"]).sum()
    else:
        y, last = gated_recurrent(*leaves[:4], state=leaves[4], lengths=lengths)
        results, loss = {"y": y, "last": last}, (y * x["dy"]).sum() + (last * x["dlast"]).sum()
    loss.backward()
    to_f = leaves[3].grad - leaves[1].grad
    results |= {"dq": leaves[0].grad, "dv": leaves[2].grad}
    results["dz"] = key * torch.sigmoid(x["z"]) * to_f
    results["dbound"] = (torch.sigmoid(-x["z"]) * to_f).sum((0, 1))
    if not bidirectional:
        results["dstate"] = leaves[4].grad
    return {name: y.detach() for name, y in results.items()}


def kernels(case: dict[str, Tensor], *, lengths=None, bidirectional=False) -> dict[str, Tensor]:
    names = ("q", "z", "v", "bound", "state")
    leaves = [case[name].clone().requires_grad_() for name in names]
    if bidirectional:
        y = hgrn2.hgrn2_bidirectional(*leaves[:4], lengths=lengths, impl="triton")
        results, loss = {"y": y}, (y * case["dy"]).sum()
    else:
        y, last = hgrn2.hgrn2(*leaves[:4], state=leaves[4], lengths=lengths, impl="triton")
        results = {"y": y, "last": last}
        loss = (y * case["dy"]).sum() + (last * case["dlast"]).sum()
    loss.backward()
    results |= {f"d{name}": x.grad for name, x in zip(names, leaves, strict=True)}
    return {name: x.detach() for name, x in results.items() if x is not None}


def check(case: dict[str, Tensor], *, skip=(), **options) -> None:
    found, expected = kernels(case, **options), oracle(case, **options)
    assert found.keys() == expected.keys()
    errors = {
        name: ((found[name].double() - x).norm() / x.norm().clamp_min(1e-30)).item()
        for name, x in expected.items()
    }
    tolerance = TOLERANCE[case["q"].dtype]
    for name, error in errors.items():
        if name not in skip:
            assert error <= tolerance * WORSE.get(name, 1), errors


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("v", WIDTHS)
@pytest.mark.parametrize("k", WIDTHS)
@GATES
def test_every_entry_of_the_table(k, v, dtype, gates):
    check(draw(2, 131, 2, k, v, dtype, **gates))


@pytest.mark.parametrize("t", [1, 2, 15, 16, 17, 63, 64, 65, 100, 127, 128, 129, 1000])
def test_every_length(t):
    check(draw(1, t, 2, 64, 64, torch.bfloat16))


@pytest.mark.parametrize("bound", [0.0, 1e-6, 0.1, 0.5, 0.99, 1 - 1e-6])
@pytest.mark.parametrize(("scale", "shift"), [(4, 0), (1, 20), (13, -7), (1, -20), (0, -50)])
def test_every_gate(scale, shift, bound):
    """Where gates lie below 2^-20 dbound has no digits left; where all are open dz has none."""
    case = draw(1, 200, 2, 64, 64, torch.bfloat16, scale=scale, shift=shift, bound=bound)
    skip = ("dbound", "dz") if bound < 0.01 or shift in (20, -50) or bound > 0.9 else ()
    check(case, skip=skip)


def test_shut_gates_without_a_state():
    """All of dz is of neighbouring tokens, each term 1e-9 of its token's own, which cancels."""
    case = draw(2, 64, 2, 64, 64, torch.bfloat16, shift=-20.0, bound=0.0)
    check(case, bidirectional=True, skip=("dbound",))


# Not deep, but nearly: 64 tokens decay by 109 bits; and next to nothing.
NEARLY = {"scale": 0.01, "shift": -0.81, "bound": 0.0}
OPEN = {"scale": 0.01, "shift": 5.0, "bound": 0.0}


@pytest.mark.parametrize("gates", [OPEN, NEARLY, CLOSED], ids=["open", "nearly", "closed"])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_gradients_of_any_size(scale, gates):
    case = draw(2, 131, 2, 64, 64, torch.bfloat16, **gates)
    case["dy"] = (scale * case["dy"].float()).bfloat16()
    check(case, bidirectional=True)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_lengths_and_directions(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    b, t, h = pick(1, 3), pick(1, 400), pick(1, 3)
    case = draw(b, t, h, 64, 64, torch.bfloat16, scale=pick(1, 6), bound=0.1, seed=seed)
    lengths = torch.randint(1, t + 1, (b,), generator=generator).cuda()
    check(case, lengths=lengths, bidirectional=bool(seed % 2))


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1, 4), (4, 0)])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_both_directions(width, scale, shift):
    case = draw(2, 200, 2, width, width, torch.bfloat16, scale=scale, shift=shift, bound=0.1)
    check(case, bidirectional=True)
    check(case, bidirectional=True, lengths=torch.tensor([200, 70]).cuda())


@pytest.mark.parametrize("shift", [0.0, -9.0])
def test_strictly_causal_bit_for_bit(shift):
    case = draw(1, 300, 2, 64, 64, torch.bfloat16, shift=shift, bound=0.0)
    q, z, v, bound = (case[name] for name in ("q", "z", "v", "bound"))
    y, _ = hgrn2.hgrn2(q, z, v, bound, impl="triton")
    for cut in (1, 20, 63, 64, 100, 299):
        changed = z.clone()
        changed[:, cut:] = -60.0
        found, _ = hgrn2.hgrn2(q, changed, v, bound, impl="triton")
        assert torch.equal(found[:, :cut], y[:, :cut]), cut


@GATES
def test_the_same_bits_every_time_into_poisoned_memory(gates):
    case = draw(2, 700, 4, 128, 128, torch.bfloat16, **gates)
    first = kernels(case)
    for _ in range(3):
        poison = torch.full((1 << 27,), float("nan"), device="cuda")
        del poison
        for name, x in kernels(case).items():
            assert torch.equal(x, first[name]), name


def test_strided_views_of_one_projection():
    fused = torch.randn(2, 100, 4, 3 * 64, device="cuda").bfloat16()
    bound = torch.full((4, 64), 0.2, device="cuda")
    views = fused.split(64, -1)
    found, _ = hgrn2.hgrn2(*views, bound, impl="triton")
    expected, _ = hgrn2.hgrn2(*(x.contiguous() for x in views), bound, impl="triton")
    assert torch.equal(found, expected)


def test_no_graph_break_and_a_graph_capture():
    case = draw(1, 256, 2, 64, 64, torch.bfloat16)
    args = [case[name] for name in ("q", "z", "v", "bound")]

    def call(q, z, v, bound):
        return hgrn2.hgrn2(q, z, v, bound, impl="triton")[0]

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


@pytest.mark.parametrize("batch", [1, 64])
def test_steps_continue_a_sequence(batch):
    case = draw(batch, 8, 2, 128, 128, torch.bfloat16)
    q, z, v, bound = (case[name] for name in ("q", "z", "v", "bound"))
    expected = oracle(case)
    state = case["state"].clone()
    for t in range(8):
        y, found = hgrn2.hgrn2_step(q[:, t], z[:, t], v[:, t], bound, state, impl="triton")
        assert found is state
        error = (y.double() - expected["y"][:, t]).norm() / expected["y"][:, t].norm()
        assert error <= 2**-8
    assert (state.double() - expected["last"]).norm() <= 1e-5 * expected["last"].norm()


@pytest.mark.usefixtures("room_on_gpu")
def test_more_than_2_31_elements():
    """The last row of a batch whose tensors hold more elements than an int32 counts."""
    b, t, h, k = 17, 65536, 16, 128
    small = draw(1, 128, h, k, 16, torch.bfloat16)
    q, z = (torch.zeros(b, t, h, k, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    v = torch.zeros(b, t, h, 16, dtype=torch.bfloat16, device="cuda")
    for x, name in ((q, "q"), (z, "z"), (v, "v")):
        x[-1, -128:] = small[name][0]
    assert q.numel() > 2**31
    y, _ = hgrn2.hgrn2(q, z, v, small["bound"], impl="triton")
    args = [small[name] for name in ("q", "z", "v", "bound")]
    expected, _ = hgrn2.hgrn2(*args, impl="triton")
    assert torch.equal(y[-1, -128:], expected[0])


def test_no_drift_over_a_long_sequence():
    """Almost open gates over 131,072 tokens: an error in log f would add up."""
    t = 131072
    case = draw(1, t, 1, 16, 16, torch.bfloat16, scale=0.5, shift=12.0, bound=0.0)
    _, last = hgrn2.hgrn2(
        case["q"], case["z"], case["v"], case["bound"], state=case["state"], impl="triton"
    )
    f, key = gate(case["z"].double(), case["bound"].double())
    G = f.log().cumsum(1)
    whole = G[:, -1:]
    carried = key * (whole - G).exp()
    S = torch.einsum("bthk,bthv->bhkv", carried, case["v"].double())
    S += whole.exp().squeeze(1)[..., None] * case["state"].double()
    assert (last.double() - S).norm() <= 2**-8 * S.norm()


def test_a_first_call_compiles_the_backward_too(monkeypatch):
    """A kind of call that no other test makes: 5 heads of 32 keys and 256 values in fp16."""
    from triton import knobs

    case = draw(2, 100, 5, 32, 256, torch.float16)
    q, z, v, bound = (case[name].requires_grad_() for name in ("q", "z", "v", "bound"))
    y, _ = hgrn2.hgrn2(q, z, v, bound, impl="triton")
    compiled = []
    monkeypatch.setattr(
        knobs.compilation, "listener", lambda src, **_: compiled.append(src.fn.fn.__name__)
    )
    (y * case["dy"]).sum().backward()
    assert q.grad is not None
    assert compiled == []
