"""Inner networks against PyTorch's own layers, initialisation and derivatives."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from problems import CPU, relative_error
from streams import stir, untouched
from torch import Tensor, nn

from framework.networks import ConvNet, FlatNetwork, build
from framework.rng import generator


def flat(depth: int = 2, width: int = 4, channels: int = 2, side: int = 8, classes: int = 3) -> FlatNetwork:
    """A small float64 network."""
    return FlatNetwork(build("convnet", channels, side, classes, width=width, depth=depth), CPU, torch.float64)


def loaded(network: FlatNetwork, theta: Tensor) -> nn.Module:
    """A copy of the module whose own parameters are theta's."""
    module = copy.deepcopy(network.module)
    nn.utils.vector_to_parameters(theta, module.parameters())
    return module


def images(count: int, channels: int = 2, side: int = 8) -> Tensor:
    return torch.randn(count, channels, side, side, generator=generator(0, "images"), dtype=torch.float64)


# ---- architecture ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "side", "depth", "classes"),
    [(3, 32, 3, 10), (1, 28, 3, 10), (3, 64, 4, 200), (1, 8, 1, 2), (2, 17, 4, 5), (4, 8, 3, 1)],
)  # ancestors' fault 8: only 3 x 32 x 32 images could be used
def test_logits_and_features_have_the_shapes_of_any_data(channels: int, side: int, depth: int, classes: int) -> None:
    network = ConvNet(channels, side, classes, width=6, depth=depth)
    batch = torch.zeros(2, channels, side, side)
    assert network(batch).shape == (2, classes)
    assert network.embed(batch).shape == (2, 6 * (side // 2**depth) ** 2)


@pytest.mark.parametrize(("arch", "blocks"), [("convnet", 3), ("convnet4", 4)])
def test_a_name_stands_for_its_number_of_blocks(arch: str, blocks: int) -> None:
    network = build(arch, 3, 64, 10)
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == [128] * blocks


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="no_such_net"):
        build("no_such_net", 3, 32, 10)


def test_an_unknown_name_is_a_key_error_with_a_depth_too() -> None:
    with pytest.raises(KeyError, match="no_such_net"):
        build("no_such_net", 3, 32, 10, depth=2)


@pytest.mark.parametrize(("side", "depth"), [(7, 3), (15, 4), (1, 1)])
def test_too_small_an_image_is_a_value_error_that_says_so(side: int, depth: int) -> None:
    with pytest.raises(ValueError, match=f"at least {2**depth} pixels, not {side}"):
        build("convnet", 3, side, 10, depth=depth)


def reference_forward(module: nn.Module, batch: Tensor, biases: list[Tensor] | None = None) -> Tensor:
    """The ConvNet written out with ``nn.InstanceNorm2d``; optionally with biases added by the convolutions."""
    assert isinstance(module, ConvNet)
    convolutions = [m for m in module.features if isinstance(m, nn.Conv2d)]
    norms = [m for m in module.features if isinstance(m, nn.GroupNorm)]
    for i, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        batch = F.conv2d(batch, convolution.weight, biases[i] if biases else None, padding=1)
        reference = nn.InstanceNorm2d(norm.num_channels, affine=True, dtype=batch.dtype)
        batch = torch.func.functional_call(reference, {"weight": norm.weight, "bias": norm.bias}, (batch,))
        batch = F.avg_pool2d(batch.clamp_min(0), 2)
    return batch.flatten(1) @ module.classifier.weight.T + module.classifier.bias


@pytest.fixture
def scattered() -> tuple[FlatNetwork, Tensor]:
    """A network whose norms too have random scales and shifts."""
    network = flat()
    return network, torch.randn(network.size, generator=generator(0, "theta"), dtype=torch.float64)


def test_blocks_are_convolution_instance_norm_relu_and_pooling(scattered: tuple[FlatNetwork, Tensor]) -> None:
    network, theta = scattered
    expected = reference_forward(loaded(network, theta), images(3)).detach()
    assert relative_error(network(theta, images(3)), expected) < 1e-13


def test_a_bias_before_the_norm_would_have_no_gradient(scattered: tuple[FlatNetwork, Tensor]) -> None:
    network, theta = scattered
    assert not any(m.bias is not None for m in network.module.modules() if isinstance(m, nn.Conv2d))
    module = loaded(network, theta)
    biases = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    logits = reference_forward(module, images(3), biases)
    assert relative_error(logits.detach(), network(theta, images(3))) < 1e-13
    gradients = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0, 1, 2])), biases)
    assert all(gradient.abs().max() < 1e-14 for gradient in gradients)


# ---- the flat vector -------------------------------------------------------------------------------


def test_the_vector_lists_all_parameters_in_the_modules_order(scattered: tuple[FlatNetwork, Tensor]) -> None:
    network, theta = scattered
    # conv 2x4x9, norm 4+4, conv 4x4x9, norm 4+4, linear 16x3+3
    assert network.sizes == [72, 4, 4, 144, 4, 4, 48, 3]
    assert network.size == 283 == len(theta)
    for part, parameter in zip(network.unflatten(theta), loaded(network, theta).parameters(), strict=True):
        assert torch.equal(part, parameter)
        assert part.untyped_storage().data_ptr() == theta.untyped_storage().data_ptr()


def test_calling_with_a_vector_is_the_module_with_those_parameters(scattered: tuple[FlatNetwork, Tensor]) -> None:
    network, theta = scattered
    before = copy.deepcopy(network.module.state_dict())
    assert relative_error(network(theta, images(5)), loaded(network, theta)(images(5)).detach()) < 1e-15
    assert all(torch.equal(before[name], value) for name, value in network.module.state_dict().items())


def test_the_vectors_gradient_is_every_parameters_gradient(scattered: tuple[FlatNetwork, Tensor]) -> None:
    network, theta = scattered
    theta.requires_grad_()
    labels = torch.tensor([0, 1, 2])
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(theta, images(3)), labels), theta)
    module = loaded(network, theta.detach())
    F.cross_entropy(module(images(3)), labels).backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    assert relative_error(gradient, expected) < 1e-13


def test_second_derivatives_agree_with_finite_differences() -> None:
    network = flat(depth=1, width=2, channels=1, side=4, classes=2)
    network.module.features = nn.Sequential(  # no kinks to step over
        *(nn.Softplus() if isinstance(layer, nn.ReLU) else layer for layer in network.module.features)  # type: ignore
    )
    theta = network.init(generator(0))
    batch, labels = images(2, 1, 4), torch.tensor([0, 1])

    def gradient(point: Tensor) -> Tensor:
        point = point.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(network(point, batch), labels), point)[0]

    hessian = torch.autograd.functional.hessian(lambda t: F.cross_entropy(network(t, batch), labels), theta)
    step = 1e-5
    for i, direction in enumerate(torch.eye(network.size, dtype=torch.float64)):
        difference = (gradient(theta + step * direction) - gradient(theta - step * direction)) / (2 * step)
        assert torch.allclose(hessian[i], difference, rtol=0, atol=1e-9)
    assert hessian.abs().max() > 0.1


def test_networks_with_running_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="buffers"):
        FlatNetwork(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), CPU)


def test_layers_without_a_rule_to_initialise_them_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"0\.weight \(PReLU"):
        FlatNetwork(nn.Sequential(nn.PReLU()), CPU)


# ---- fresh networks --------------------------------------------------------------------------------


def test_fresh_networks_follow_pytorchs_own_distribution() -> None:
    """Per tensor: the bounds, and mean and deviation, of the values that PyTorch's own layers draw."""
    network = FlatNetwork(nn.Sequential(nn.Conv2d(3, 20, 3), nn.GroupNorm(4, 20), nn.Flatten(), nn.Linear(80, 30)), CPU)
    rounds = 60
    gen = generator(0, "ours")
    ours = [torch.stack(v) for v in zip(*(network.unflatten(network.init(gen)) for _ in range(rounds)), strict=True)]
    theirs: list[list[Tensor]] = [[] for _ in ours]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(rounds):
            for layer in network.module:  # type: ignore[union-attr]
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
            for values, parameter in zip(theirs, network.module.parameters(), strict=True):
                values.append(parameter.detach().clone())
    bounds = {"0": 27**-0.5, "3": 80**-0.5}  # 1 / sqrt(fan in)
    for name, our, their in zip(network.names, ours, map(torch.stack, theirs), strict=True):
        assert our.shape == their.shape
        layer = name.split(".")[0]
        if layer == "1":  # norm: scale 1, shift 0
            assert torch.equal(our, their)
            continue
        assert our.abs().max() <= bounds[layer]
        assert their.abs().max() <= bounds[layer]
        assert our.max() > 0.99 * bounds[layer]
        assert our.min() < -0.99 * bounds[layer]
        error = 5 * bounds[layer] * math.sqrt(2 / our.numel())
        assert abs(our.mean() - their.mean()) < error
        assert abs(our.std() - their.std()) < error


def test_a_fresh_network_depends_on_its_generator_alone() -> None:
    """Ancestors' fault 17: something reseeded the global stream behind everybody's back."""

    def fresh(stirred: int, seed: int) -> Tensor:
        stir(stirred)
        with untouched():
            return flat().init(generator(seed))

    assert torch.equal(fresh(1, 0), fresh(2, 0))
    assert not torch.equal(fresh(1, 0), fresh(1, 1))
    gen = generator(0)
    network = flat()
    assert not torch.equal(network.init(gen), network.init(gen))
