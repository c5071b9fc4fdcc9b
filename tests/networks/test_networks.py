"""Inner networks against PyTorch's own layers, initialisation and derivatives."""

import copy
import hashlib
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import CPU, relative_error
from streams import stir, untouched
from torch import Tensor, nn

from framework.networks.flat import FlatNetwork
from framework.networks.layers import BatchNorm, norm_layer
from framework.networks.registry import ARCHITECTURES, build, build_bare
from framework.networks.spec import ACTIVATIONS, NORMS, POOLS
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
    network = build("convnet", channels, side, classes, width=6, depth=depth)
    batch = torch.zeros(2, channels, side, side)
    assert network(batch).shape == (2, classes)
    assert network.embed(batch).shape == (2, 6 * (side // 2**depth) ** 2)


@pytest.mark.parametrize(("arch", "blocks"), [("convnet", 3), ("convnet4", 4), ("convnet5", 5)])
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
    assert isinstance(module.features, nn.Sequential)
    assert isinstance(module.classifier, nn.Linear)
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
    """PyTorch's own move them at every step, replayed or not."""
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


GOLDEN = [  # of the vectors that this project's first ConvNet drew
    (("convnet", 3, 32, 10), {}, "bafb6864af3920a7", "d5bae6d2642cb555"),
    (("convnet4", 3, 64, 5), {"width": 16}, "c525d3754cef4c70", "0ecefb4e1fbfb280"),
    (("convnet", 1, 8, 10), {"width": 8, "depth": 1}, "e021401740417e56", "b3a7ce741bd033bf"),
]


@pytest.mark.parametrize(("data", "flags", "values", "names"), GOLDEN)
def test_convnets_stay_what_they_have_always_been(
    data: tuple[str, int, int, int], flags: dict[str, int], values: str, names: str
) -> None:
    network = FlatNetwork(build(*data, **flags), CPU)  # type: ignore[arg-type]
    theta = network.init(generator(0, "golden"))
    assert hashlib.sha256(theta.numpy().tobytes()).hexdigest().startswith(values)
    assert hashlib.sha256(" ".join(network.names).encode()).hexdigest().startswith(names)


# ---- every network ---------------------------------------------------------------------------------

SMALLEST = {"convnet": 8, "convnet4": 16, "convnet5": 32, "vgg11": 17, "alexnet": 8, "resnet18": 9, "vit": 3}
EVERY = [(arch, norm) for arch in ARCHITECTURES for norm in NORMS if (arch, norm) != ("vit", "instance")]


def tiny(arch: str, **flags: Any) -> FlatNetwork:
    """A smooth float64 network for the smallest images it takes: finite differences would step over kinks."""
    module = build(arch, 2, SMALLEST[arch], 3, **{"width": 8, "act": "gelu", "pool": "avg", **flags})
    return FlatNetwork(module, CPU, torch.float64)


def test_every_network_is_held_to_the_contract() -> None:
    assert tuple(SMALLEST) == ARCHITECTURES


@pytest.mark.parametrize(
    ("arch", "side"), [(arch, side) for arch in ARCHITECTURES for side in (28, 32, 64) if side >= SMALLEST[arch]]
)
def test_every_network_takes_any_images_and_classes(arch: str, side: int) -> None:
    network = FlatNetwork(build(arch, 1, side, 7, width=8), CPU)
    theta, batch = network.init(generator(0)), torch.randn(3, 1, side, side, generator=generator(1))
    features = network.embed(theta, batch)
    assert network(theta, batch).shape == (3, 7)
    assert features.shape[0] == 3
    assert torch.equal(loaded(network, theta).classifier(features), network(theta, batch))  # type: ignore[operator]


# Feature counts worked out by hand: the published networks at 32 pixels, and MNIST's 28.
@pytest.mark.parametrize(
    ("arch", "side", "features", "convolutions"),
    [
        ("convnet", 32, 128 * 4 * 4, [128] * 3),
        ("convnet5", 128, 128 * 4 * 4, [128] * 5),
        ("vgg11", 32, 512, [64, 128, 256, 256, 512, 512, 512, 512]),
        ("vgg11", 28, 512, [64, 128, 256, 256, 512, 512, 512, 512]),
        ("alexnet", 32, 192 * 4 * 4, [128, 192, 256, 192, 192]),
        ("resnet18", 28, 512, [64] * 5 + [128] * 2 + [128] + [128] * 2 + [256] * 5 + [512] * 5),
        ("vit", 28, 128, [128]),
    ],
)
def test_default_networks_are_those_of_the_literature(
    arch: str, side: int, features: int, convolutions: list[int]
) -> None:
    with torch.device("meta"):
        network = build(arch, 3, side, 10)
    assert network.classifier.in_features == features  # type: ignore[union-attr]
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == convolutions


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_images_worn_down_to_nothing_are_refused(arch: str) -> None:
    side = SMALLEST[arch]
    build(arch, 1, side, 2, width=8)
    with pytest.raises(ValueError, match=rf"--arch {arch} .* at least {side} pixels, not {side - 1}"):
        build(arch, 1, side - 1, 2, width=8)


@pytest.mark.parametrize(("arch", "norm"), EVERY)
def test_the_smallest_images_still_reach_the_features(arch: str, norm: str) -> None:
    """An instance norm of one pixel is constant: ancestors' networks of other sizes than 32 pixels had some."""
    network = tiny(arch, norm=norm)
    batch = images(4, 2, SMALLEST[arch])
    assert network.embed(network.init(generator(0)), batch).std(0).max() > (1e-6 if norm == "none" else 1e-2)


@pytest.mark.parametrize(
    ("arch", "flags", "words"),
    [
        ("alexnet", {"depth": 6}, "--arch alexnet .* --depth 6"),
        ("vgg11", {"depth": 6}, "--depth 6"),
        ("vit", {"width": 6}, "--width 6"),
        ("vit", {"norm": "instance"}, "--norm instance"),
        ("convnet", {"width": 6, "norm": "group"}, "--norm group .* 6 channels"),
    ],
)
def test_sizes_that_a_network_cannot_have_are_refused(arch: str, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(arch, 3, 32, 10, **flags)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_network_reads_every_flag(arch: str) -> None:
    def shapes(**flags: Any) -> list[torch.Size]:
        return FlatNetwork(build(arch, 2, 32, 3, **{"width": 8, **flags}), CPU).shapes

    def outputs(**flags: Any) -> Tensor:
        network = FlatNetwork(build(arch, 2, 32, 3, **{"width": 8, **flags}), CPU, torch.float64)
        return network(network.init(generator(0)), images(2, 2, 32))

    assert shapes(width=16) != shapes()
    assert shapes(depth=1) != shapes()
    assert len({tuple(outputs(act=act).flatten().tolist()) for act in ACTIVATIONS}) == len(ACTIVATIONS)
    for pool in POOLS[1:]:
        pooled, plain = outputs(pool=pool), outputs(pool="avg")
        assert not torch.allclose(pooled, plain)
    outcomes = {tuple(outputs(norm=norm, width=32).flatten().tolist()) for name, norm in EVERY if name == arch}
    assert len(outcomes) == sum(name == arch for name, _ in EVERY)


def second_derivatives(network: FlatNetwork, theta: Tensor, batch: Tensor, labels: Tensor, step: float) -> float:
    """Largest relative error of H v and of the mixed partial times v against central differences."""

    def gradients(point: Tensor, create_graph: bool = False) -> list[Tensor]:
        inputs = [point.detach().requires_grad_(), batch.detach().requires_grad_()]
        loss = F.cross_entropy(network(*inputs), labels)
        assert loss.isfinite()
        return [*torch.autograd.grad(loss, inputs, create_graph=create_graph), *inputs]

    direction = F.normalize(torch.randn(network.size, generator=generator(3), dtype=torch.float64), dim=0)
    slope, _, *inputs = gradients(theta, create_graph=True)
    products = torch.autograd.grad(slope, inputs, direction)
    ahead, behind = gradients(theta + step * direction), gradients(theta - step * direction)
    return max(
        relative_error(product, (a - b) / (2 * step))
        for product, a, b in zip(products, ahead[:2], behind[:2], strict=True)
    )


@pytest.mark.parametrize(("arch", "norm"), EVERY)
def test_every_networks_second_derivatives_agree_with_finite_differences(arch: str, norm: str) -> None:
    network = tiny(arch, norm=norm)
    batch, labels = images(4, 2, SMALLEST[arch]), torch.tensor([0, 1, 2, 1])
    assert second_derivatives(network, network.init(generator(0)), batch, labels, 1e-4) < 1e-5


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_and_pooling_has_second_derivatives(act: str, pool: str) -> None:
    for arch in ("convnet", "vit"):
        network = tiny(arch, act=act, pool=pool, depth=2)
        batch, labels = images(4, 2, SMALLEST[arch]), torch.tensor([0, 1, 2, 1])
        # A step so small that no kink of a ReLU or a maximum lies within it.
        assert second_derivatives(network, network.init(generator(0)), batch, labels, 1e-7) < 1e-5


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_fresh_networks_of_every_architecture_follow_pytorchs_rule(arch: str) -> None:
    """Each layer against PyTorch's own ``reset_parameters``: bounds and constants; positions by their deviation."""
    network = FlatNetwork(build(arch, 3, 32, 10, width=32), CPU)
    theirs = {name: value.detach() for name, value in build(arch, 3, 32, 10, width=32).named_parameters()}
    for name, ours in zip(network.names, network.unflatten(network.init(generator(0))), strict=True):
        if name == "positions.table":
            assert float(ours.std()) == pytest.approx(0.02, rel=0.05)
        elif theirs[name].std() == 0:  # a norm's scale or shift
            assert torch.equal(ours, theirs[name])
        else:
            assert float(ours.abs().max()) == pytest.approx(float(theirs[name].abs().max()), rel=0.35)


# ---- single layers ---------------------------------------------------------------------------------


def test_attention_is_pytorchs() -> None:
    """Against ``nn.MultiheadAttention`` with the same weights."""
    module = build("vit", 1, 8, 2, width=8, depth=1).double()
    ours = module.layers[0].attention[1]  # type: ignore[index, union-attr]
    reference = nn.MultiheadAttention(8, 4, batch_first=True, dtype=torch.float64)
    state = {"in_proj_weight": ours.inputs.weight, "in_proj_bias": ours.inputs.bias}
    state |= {"out_proj.weight": ours.output.weight, "out_proj.bias": ours.output.bias}
    reference.load_state_dict(state)
    tokens = torch.randn(3, 5, 8, generator=generator(0), dtype=torch.float64)
    assert relative_error(ours(tokens).detach(), reference(tokens, tokens, tokens)[0].detach()) < 1e-13


@pytest.mark.parametrize(("side", "patch", "count"), [(8, 2, 16), (28, 4, 49), (32, 4, 64), (17, 3, 36), (128, 16, 64)])
def test_a_vits_patches_cover_the_image(side: int, patch: int, count: int) -> None:
    network = build("vit", 1, side, 2, width=4, depth=1)
    assert network.patches.kernel_size == (patch, patch)  # type: ignore[union-attr]
    assert network.positions.table.shape == (count, 4)  # type: ignore[union-attr]
    batch = torch.zeros(1, 1, side, side, requires_grad=True)
    network(batch).sum().backward()
    assert batch.grad is not None
    assert (batch.grad != 0).all(), "every pixel counts"


def test_batch_norm_is_pytorchs_and_tracks_only_when_told() -> None:
    ours, reference = BatchNorm(3).double(), nn.BatchNorm2d(3, dtype=torch.float64)
    for i in range(4):
        batch = 2 + 3 * torch.randn(5, 3, 4, 4, generator=generator(i), dtype=torch.float64)
        before = ours.running_mean.clone(), ours.running_var.clone()
        ours.tracking = False
        assert torch.allclose(ours(batch), reference(batch), rtol=0, atol=1e-12)
        assert torch.equal(before[0], ours.running_mean) and torch.equal(before[1], ours.running_var)
        ours.tracking = True
        ours(batch)
        assert torch.allclose(ours.running_mean, reference.running_mean, rtol=1e-12)  # type: ignore[arg-type]
        assert torch.allclose(ours.running_var, reference.running_var, rtol=1e-12)  # type: ignore[arg-type]
    assert torch.allclose(ours.eval()(batch), reference.eval()(batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("norm", "dims"), [("instance", (2, 3)), ("layer", (1, 2, 3)), ("batch", (0, 2, 3))])
def test_a_norm_is_taken_over_its_own_dimensions(norm: str, dims: tuple[int, ...]) -> None:
    x = torch.randn(4, 8, 3, 3, generator=generator(0), dtype=torch.float64)
    expected = (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(norm_layer(norm, 8).double()(x), expected, rtol=0, atol=1e-12)


# ---- batch norm in the flat network ----------------------------------------------------------------


@pytest.mark.parametrize(("arch", "norm"), EVERY)
def test_per_sample_tells_whether_images_of_a_batch_see_each_other(arch: str, norm: str) -> None:
    network = tiny(arch, norm=norm)
    theta, batch = network.init(generator(0)), images(4, 2, SMALLEST[arch])
    alone, together = network(theta, batch[:2]), network(theta, batch)[:2]
    assert network.per_sample == torch.allclose(alone, together, rtol=0, atol=1e-10)
    assert network.per_sample == (norm != "batch")


def test_running_statistics_are_those_of_the_tracked_steps_alone() -> None:
    network = tiny("convnet", norm="batch", depth=2)
    theta, statistics = network.init(generator(0)), network.fresh_statistics()
    assert statistics.tolist() == ([0.0] * 8 + [1.0] * 8) * 2
    network(theta, images(4))
    network.embed(theta, images(4))
    assert statistics.tolist() == ([0.0] * 8 + [1.0] * 8) * 2
    first = loaded(network, theta).features[0]  # type: ignore[index]
    with network.tracking(statistics):
        network(theta, images(4))
    maps = first(images(4)).detach()
    assert torch.allclose(statistics[:8], 0.1 * maps.mean((0, 2, 3)), rtol=1e-12)
    assert torch.allclose(statistics[8:16], 0.9 + 0.1 * maps.var((0, 2, 3)), rtol=1e-12)
    after = statistics.clone()
    network(theta, images(4))
    assert torch.equal(statistics, after)
    assert network.fresh_statistics().tolist() == ([0.0] * 8 + [1.0] * 8) * 2, "the next network starts afresh"


def test_evaluation_uses_the_statistics_that_come_with_the_parameters() -> None:
    network = tiny("convnet", norm="batch", depth=1)
    theta = network.init(generator(0))
    moved = network.fresh_statistics()
    with network.tracking(moved):
        network(theta, images(6))
    network.module.eval()
    outputs = [network(torch.cat([theta, s]), images(3)) for s in (network.fresh_statistics(), moved)]
    assert not torch.allclose(*outputs)
    assert torch.allclose(network(torch.cat([theta, moved]), images(1)), outputs[1][:1], rtol=0, atol=1e-12)
    with pytest.raises(RuntimeError, match="split"):
        network(theta, images(3))


@pytest.mark.parametrize("width", [10**17, 10**30])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_network_that_no_tensor_can_hold_is_refused_by_its_flag(arch: str, width: int) -> None:
    with pytest.raises(ValueError, match=f"--width {width}"):
        build_bare(arch, 3, 64, 10, width=width)
    assert build_bare(arch, 3, 64, 10, width=64).classifier.weight.is_meta
