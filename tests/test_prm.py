"""The response network, its peaks and its peak response maps, against the published program and slow versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from cim.core.errors import CimError
from cim.prm.network import (
    Peaks,
    ResponseNet,
    build_response_net,
    class_scores,
    find_peaks,
    load_response_net,
    peak_mask,
    prepare_photo,
    published_names,
    response_maps,
)
from cim.prm.peak_response import ProbabilisticConvolutions, peak_responses


def published_net(arrays) -> ResponseNet:
    """conv - relu - conv - relu - conv 1x1 of the reference file."""
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    net = ResponseNet(trunk, 16, 5)
    names = {"net.0": "trunk.0", "net.2": "trunk.2", "net.4": "head"}
    state = {names[k[:5]] + k[5:]: torch.tensor(arrays[k]) for k in arrays if k.startswith("net.")}
    net.load_state_dict(state)
    return net.eval()


@pytest.fixture(scope="module")
def expected(reference):
    with np.load(reference / "expected" / "peak_response.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("case", "threshold"), [("thr10", 10.0), ("fallback", 1e9)])
@pytest.mark.parametrize("batch", [1, 5, 100])
def test_equals_the_published_program(expected, case, threshold, batch):
    net, image = published_net(expected), torch.tensor(expected["x"])
    maps = net(image)
    np.testing.assert_allclose(maps.detach().numpy(), expected[f"{case}.crm"], atol=1e-4)
    np.testing.assert_allclose(class_scores(maps).detach().numpy(), expected[f"{case}.agg"], atol=1e-4)
    np.testing.assert_array_equal(peak_mask(maps).nonzero().numpy(), expected["eval.peaks"])
    peaks = find_peaks(maps[0], [3, 1], threshold)
    np.testing.assert_array_equal(peaks.index, expected[f"{case}.peaks"][:, 1:])
    np.testing.assert_allclose(peaks.values, expected[f"{case}.score"], atol=1e-4)
    responses = peak_responses(net, image[0], peaks.index, batch=batch)
    np.testing.assert_allclose(responses, expected[f"{case}.prm"], atol=1e-6)


# ---------------------------------------------------------------------- peaks


def slow_peaks(values: np.ndarray) -> list[tuple[int, int]]:
    """Peaks of one map, pixel by pixel."""
    height, width = values.shape
    median = np.sort(values.ravel())[(values.size - 1) // 2]
    found = []
    for y in range(height):
        for x in range(width):
            window = [
                (v, u) for v in range(y - 1, y + 2) for u in range(x - 1, x + 2) if 0 <= v < height and 0 <= u < width
            ]
            first = max(window, key=lambda at: (values[at], -at[0], -at[1]))
            if first == (y, x) and values[y, x] >= median:
                found.append((y, x))
    return found


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 6), st.integers(0, 10**6))
def test_peaks_and_scores_equal_the_slow_version(height, width, levels, seed):
    values = np.random.default_rng(seed).integers(-levels, levels, (height, width)).astype(np.float32)
    maps = torch.tensor(values)[None, None]
    expected = slow_peaks(values)
    assert [tuple(at) for at in peak_mask(maps)[0, 0].nonzero().tolist()] == expected
    assert class_scores(maps).item() == pytest.approx(np.mean([values[at] for at in expected]), abs=1e-5)


def test_a_flat_map_has_one_peak_and_equal_peaks_are_all_found():
    flat = torch.zeros(1, 4, 5)
    assert find_peaks(flat, [0]).index.tolist() == [[0, 0, 0]]
    two = flat.clone()
    two[0, 0, 0] = two[0, 3, 4] = 20.0
    assert find_peaks(two, [0]).index.tolist() == [[0, 0, 0], [0, 3, 4]]
    assert find_peaks(two, [0], threshold=30.0).index.tolist() == [[0, 0, 0]]  # the first of equals stands alone


def test_a_negative_map_falls_back_to_its_highest_peak():
    maps = -torch.arange(1.0, 21.0).view(1, 4, 5)
    peaks = find_peaks(maps, [0])
    assert peaks.index.tolist() == [[0, 0, 0]]
    assert peaks.values.tolist() == [-1.0]


def test_no_classes_no_peaks():
    peaks = find_peaks(torch.zeros(3, 4, 5), [])
    assert len(peaks) == 0
    assert peaks.index.shape == (0, 3)
    assert peaks.grid == (4, 5)


def test_peaks_check_their_shape():
    with pytest.raises(ValueError, match="index must be"):
        Peaks(np.zeros((2, 2), np.int64), np.zeros(2, np.float32), (4, 4))


def test_training_gradient_flows_to_the_peaks_alone():
    maps = torch.randn(2, 3, 6, 7, requires_grad=True)
    class_scores(maps).sum().backward()
    peaks = peak_mask(maps)
    assert bool((maps.grad != 0).eq(peaks).all())
    torch.testing.assert_close(maps.grad.sum((2, 3)), torch.ones(2, 3))


# ---------------------------------------------------------------------- peak response maps


def plain_response(net: ResponseNet, image: torch.Tensor, at: list[int]) -> np.ndarray:
    """One peak the obvious way: hooks that change every convolution's gradient, one backward pass."""
    handles, leaf = [], image[None].clone().requires_grad_()
    for layer in (m for m in net.modules() if isinstance(m, nn.Conv2d)):

        def forward(layer, inputs, output):
            (x,) = inputs
            shifted, positive = (x - x.min()).detach(), layer.weight.detach().clamp(min=0)
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
            with torch.enable_grad():
                probe = shifted.clone().requires_grad_()
                total = functional.conv2d(probe, positive, None, *geometry)

            def turn(grad):
                share = torch.where(total < 1e-10, torch.zeros_like(grad), grad / total)
                back = torch.autograd.grad(total, probe, share, retain_graph=True)[0]
                kept["back"] = shifted * back
                return grad

            kept: dict = {}
            if output.requires_grad:
                output.register_hook(turn)
                x.register_hook(lambda grad, kept=kept: kept.pop("back"))

        handles.append(layer.register_forward_hook(forward))
    # x.register_hook sees the plain gradient of the convolution and puts the probability in its place.
    net(leaf)[0][tuple(at)].backward()
    for handle in handles:
        handle.remove()
    response = leaf.grad[0].sum(0).clamp(min=0)
    return (response / response.sum()).numpy()


class Chain(nn.Module):
    """A bit of everything that trunks have, in a chain: strides that leave a rest, groups, dilation, norms, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 0, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
            nn.ReLU6(inplace=True),
            nn.Conv2d(8, 6, 3, 1, 2, dilation=2),
            nn.ReLU(),
        )

    def forward(self, x):
        return self.layers(x)


def chain_net() -> ResponseNet:
    torch.manual_seed(3)
    return ResponseNet(Chain(), 6, 2, upsample=2).eval()


def test_batched_equals_one_plain_backward_per_peak():
    net, image = chain_net(), torch.randn(3, 30, 30)
    at = [[0, 3, 4], [1, 0, 0], [0, 7, 9], [1, 13, 13]]
    found = peak_responses(net, image, np.array(at), batch=3)
    for response, place in zip(found, at, strict=True):
        np.testing.assert_allclose(response, plain_response(net, image, place), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet50_c5", "mobilenet_v2", "hrnet_w18_small"])
def test_any_trunk_of_the_registry(name):
    torch.manual_seed(0)
    net = build_response_net(name, 3, weights="none", upsample=4).eval()
    image = torch.randn(3, 64, 64)
    both = peak_responses(net, image, np.array([[0, 0, 0], [2, 5, 6]]), batch=2)
    apart = peak_responses(net, image, np.array([[0, 0, 0], [2, 5, 6]]), batch=1)
    assert both.shape == (2, 64, 64)
    np.testing.assert_allclose(both, apart, atol=1e-6)
    np.testing.assert_allclose(both.sum((1, 2)), 1, rtol=1e-4)


def test_the_model_is_as_before_also_after_an_error():
    class Failing(Chain):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("in between")

    net, image = chain_net(), torch.randn(3, 30, 30)
    before = {k: v.clone() for k, v in net.state_dict().items()}

    def gradient():
        leaf = image[None].clone().requires_grad_()
        return torch.autograd.grad(net(leaf).sum(), leaf)[0]

    plain = gradient()
    peak_responses(net, image, np.array([[0, 1, 1]]))
    with pytest.raises(RuntimeError, match="in between"):
        peak_responses(ResponseNet(Failing(), 6, 2).eval(), image, np.array([[0, 1, 1]]))
    torch.testing.assert_close(gradient(), plain, rtol=0, atol=0)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    torch.manual_seed(1)
    layer = nn.Conv2d(3, 2, 3, padding=padding)
    with ProbabilisticConvolutions():
        found = layer(torch.ones(1, 3, 6, 6, requires_grad=True))
    torch.testing.assert_close(found, layer(torch.ones(1, 3, 6, 6)))


@torch.no_grad()
def test_works_where_gradients_are_off():
    found = peak_responses(chain_net(), torch.randn(3, 30, 30), np.array([[0, 3, 4]]))
    assert found.sum() == pytest.approx(1, abs=1e-4)


def test_no_peaks_and_train_mode():
    net, image = chain_net(), torch.randn(3, 30, 30)
    assert peak_responses(net, image, np.zeros((0, 3), np.int64)).shape == (0, 30, 30)
    with pytest.raises(ValueError, match="eval mode"):
        peak_responses(net.train(), image, np.array([[0, 0, 0]]))


# ---------------------------------------------------------------------- weights


def published_state(net: ResponseNet) -> dict[str, torch.Tensor]:
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    state = {}
    for name, tensor in net.state_dict().items():
        if name.startswith("head."):
            state[f"0.classifier.0.{name[5:]}"] = tensor
        else:
            part, _, rest = name.removeprefix("trunk.body.").partition(".")
            state[f"0.features.{parts.index(part)}.{rest}"] = tensor
    return state


def test_published_file_loads(tmp_path):
    torch.manual_seed(0)
    net = build_response_net("resnet50_c5", 4, weights="none").eval()
    torch.save(published_state(net), tmp_path / "prm_voc.pth")
    loaded = load_response_net(tmp_path / "prm_voc.pth", 4)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(image), net(image))
    with pytest.raises(CimError, match=r"other classes.*expected 20"):
        load_response_net(tmp_path / "prm_voc.pth", 20)
    torch.save({"0.classifier.0.weight": torch.zeros(4, 2048, 1, 1)}, tmp_path / "part.pth")
    with pytest.raises(CimError, match="do not fit"):
        load_response_net(tmp_path / "part.pth")


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(CimError, match="cim prm"):
        load_response_net(tmp_path / "none.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CimError, match="not a checkpoint"):
        load_response_net(tmp_path / "other.pth")
    assert published_names({"features.99.weight": torch.zeros(1)}) is None


def test_response_maps_of_a_photo():
    net = build_response_net("mobilenet_v2", 3, weights="none", image_size=64).eval()
    photo = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    maps = response_maps(net, photo)
    assert maps.shape == (3, 16, 16)
    assert maps.dtype == np.float32
    with torch.no_grad():
        np.testing.assert_allclose(maps, net(prepare_photo(photo, 64)[None])[0].numpy(), atol=1e-5)


def test_image_scores_are_the_peaks_mean_or_that_of_the_top_tenth():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 6, 5)
    mean, top = (ResponseNet(torch.nn.Identity(), 4, 3, score=score) for score in ("peaks", "top"))
    torch.testing.assert_close(mean.image_scores(maps), class_scores(maps))
    for scores, one in zip(top.image_scores(maps).flatten(), maps.flatten(0, 1), strict=True):
        assert scores.item() == pytest.approx(np.mean(sorted(one.flatten().tolist())[-3:]), rel=1e-5)  # of 30
