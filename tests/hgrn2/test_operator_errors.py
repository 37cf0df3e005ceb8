"""Bad input is refused before anything is computed, in words that say what would be right."""

from __future__ import annotations

import pytest
import torch

from hgrn2 import (
    Activations,
    gla,
    gla_bidirectional,
    gla_step,
    hgrn1,
    hgrn1_bidirectional,
    hgrn2,
    hgrn2_bidirectional,
    hgrn2_projected,
    hgrn2_step,
)

B, T, H, K, V, D = 2, 5, 3, 4, 6, 7


def hgrn2_arguments(**changed):
    shapes = {"q": (B, T, H, K), "z": (B, T, H, K), "v": (B, T, H, V), "bound": (H, K)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()} | changed


def hgrn1_arguments(*, turned=False, **changed):
    pair = (2,) if turned else ()
    arguments = {
        "v": torch.zeros(B, T, D, *pair),
        "z": torch.zeros(B, T, D),
        "bound": torch.zeros(D),
    }
    return arguments | ({"theta": torch.zeros(D)} if turned else {}) | changed


def step_arguments(**changed):
    shapes = {"q": (B, H, K), "z": (B, H, K), "v": (B, H, V), "bound": (H, K)}
    shapes["state"] = (B, H, K, V)
    return {name: torch.zeros(shape) for name, shape in shapes.items()} | changed


def gla_arguments(**changed):
    shapes = {name: (B, T, H, K) for name in ("q", "key", "z")} | {"v": (B, T, H, V)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()} | changed


def gla_step_arguments(**changed):
    shapes = {name: (B, H, K) for name in ("q", "key", "z")}
    shapes |= {"v": (B, H, V), "state": (B, H, K, V)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()} | changed


def refuses(operator, arguments, *parts):
    with pytest.raises(ValueError, match=r"should|unknown|give both") as error:
        operator(**arguments)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("z", (B, T, H, K + 1), "[b t h k] = [2, 5, 3, 4]"),
        ("v", (B, T + 1, H, V), "[b t h v] = [2, 5, 3, 6]"),
        ("bound", (K,), "[h k] = [3, 4]"),
        ("state", (B, H, V, K), "[b h k v] = [2, 3, 4, 6]"),
        ("lengths", (B, 1), "[b] = [2]"),
    ],
)
def test_hgrn2_shapes(name, wrong, right):
    arguments = hgrn2_arguments(**{name: torch.zeros(wrong)})
    message = (f"{name} has shape {list(wrong)}", right)
    refuses(hgrn2, arguments, *message)
    if name != "state":
        refuses(hgrn2_bidirectional, arguments, *message)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_projection(impl):
    arguments = {
        "x": torch.zeros(B, T, 3, H, 16),
        "bound": torch.zeros(H, 16),
        "activations": Activations("silu", silu_value=False),
        "impl": impl,
    }
    wrong = {**arguments, "x": torch.zeros(B, T, 2, H, 16)}
    refuses(hgrn2_projected, wrong, "x has shape [2, 5, 2, 3, 16]", "[b t 3 h k]")
    wrong = {**arguments, "bound": torch.zeros(16)}
    refuses(hgrn2_projected, wrong, "bound has shape [16]", "[h k] = [3, 16]")
    if impl == "triton":
        with pytest.raises(ValueError, match="impl='triton' needs a CUDA device"):
            hgrn2_projected(**arguments)


@pytest.mark.parametrize("operator", [hgrn2, hgrn2_bidirectional])
def test_hgrn2_axes(operator):
    message = ("q has shape [2, 5, 4]", "[b t h k] and [b t h v]")
    refuses(operator, hgrn2_arguments(q=torch.zeros(B, T, K)), *message)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("z", (B, H, K + 1), "[b h k] = [2, 3, 4]"),
        ("v", (B, H + 1, V), "[b h v] = [2, 3, 6]"),
        ("bound", (K,), "[h k] = [3, 4]"),
        ("state", (B, H, V, K), "[b h k v] = [2, 3, 4, 6]"),
    ],
)
def test_step_shapes(name, wrong, right):
    arguments = step_arguments(**{name: torch.zeros(wrong)})
    refuses(hgrn2_step, arguments, f"{name} has shape {list(wrong)}", right)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("key", (B, T, H, K + 1), "[b t h k] = [2, 5, 3, 4]"),
        ("z", (B, T, 1, K), "[b t h k] = [2, 5, 3, 4]"),
        ("v", (B, T + 1, H, V), "[b t h v] = [2, 5, 3, 6]"),
        ("state", (B, H, V, K), "[b h k v] = [2, 3, 4, 6]"),
        ("lengths", (B, 1), "[b] = [2]"),
    ],
)
def test_gla_shapes(name, wrong, right):
    arguments = gla_arguments(**{name: torch.zeros(wrong)})
    message = (f"{name} has shape {list(wrong)}", right)
    refuses(gla, arguments, *message)
    if name != "state":
        refuses(gla_bidirectional, arguments, *message)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("key", (B, H, K + 1), "[b h k] = [2, 3, 4]"),
        ("v", (B, H + 1, V), "[b h v] = [2, 3, 6]"),
        ("state", (B, H, V, K), "[b h k v] = [2, 3, 4, 6]"),
    ],
)
def test_gla_step_shapes(name, wrong, right):
    arguments = gla_step_arguments(**{name: torch.zeros(wrong)})
    refuses(gla_step, arguments, f"{name} has shape {list(wrong)}", right)


def test_step_axes():
    message = ("q has shape [2, 5, 3, 4]", "[b h k] and [b h v]")
    refuses(hgrn2_step, step_arguments(q=torch.zeros(B, T, H, K)), *message)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("v", (B, T, D, 2), "[b t d] = [2, 5, 7]"),
        ("bound", (D + 1,), "[d] = [7]"),
        ("state", (B, D, 2), "[b d] = [2, 7]"),
        ("lengths", (B + 1,), "[b] = [2]"),
    ],
)
def test_hgrn1_real_shapes(name, wrong, right):
    arguments = hgrn1_arguments(**{name: torch.zeros(wrong)})
    refuses(hgrn1, arguments, f"{name} has shape {list(wrong)}", right)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("v", (B, T, D), "[b t d 2] = [2, 5, 7, 2]"),
        ("theta", (D, 2), "[d] = [7]"),
        ("state", (B, D), "[b d 2] = [2, 7, 2]"),
    ],
)
def test_hgrn1_complex_shapes(name, wrong, right):
    arguments = hgrn1_arguments(turned=True, **{name: torch.zeros(wrong)})
    refuses(hgrn1, arguments, f"{name} has shape {list(wrong)}", right)


@pytest.mark.parametrize("operator", [hgrn1, hgrn1_bidirectional])
def test_hgrn1_axes(operator):
    refuses(operator, hgrn1_arguments(z=torch.zeros(B, D)), "z has shape [2, 7]", "[b t d]")


def test_backward_angle():
    arguments = hgrn1_arguments(turned=True, theta_backward=torch.zeros(D + 1))
    refuses(hgrn1_bidirectional, arguments, "theta_backward has shape [8]", "[d] = [7]")
    arguments = hgrn1_arguments(theta_backward=torch.zeros(D))
    refuses(hgrn1_bidirectional, arguments, "theta is None; give both, or neither")


def test_empty_sequences():
    empty = hgrn2_arguments(**{x: torch.zeros(B, 0, H, K) for x in ("q", "z", "v")})
    refuses(hgrn2, empty, "q has shape [2, 0, 3, 4]", "t should be at least 1")
    empty = hgrn1_arguments(v=torch.zeros(B, 0, D), z=torch.zeros(B, 0, D))
    refuses(hgrn1, empty, "z has shape [2, 0, 7]", "t should be at least 1")


@pytest.mark.parametrize("name", ["q", "z", "v", "bound"])
def test_dtypes(name):
    arguments = hgrn2_arguments()
    arguments[name] = arguments[name].long()
    refuses(hgrn2, arguments, f"{name} has dtype torch.int64", "real floating-point type")


def test_lengths_are_integers():
    arguments = hgrn2_arguments(lengths=torch.ones(B))
    refuses(hgrn2, arguments, "lengths has dtype torch.float32", "an integer type")


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (hgrn2, hgrn2_arguments()),
        (hgrn2_bidirectional, hgrn2_arguments()),
        (hgrn2_step, step_arguments()),
        (gla, gla_arguments()),
        (gla_bidirectional, gla_arguments()),
        (gla_step, gla_step_arguments()),
        (hgrn1, hgrn1_arguments()),
        (hgrn1_bidirectional, hgrn1_arguments()),
    ],
)
def test_unknown_implementations(operator, arguments):
    refuses(operator, arguments | {"impl": "cuda"}, "impl='cuda' is unknown", "reference, triton")
