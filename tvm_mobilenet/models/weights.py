"""Weights: load them from a file, make random ones, save them, and build the module they fill.

Nothing is ever unpickled but tensors: `.safetensors` holds nothing else, and `.pth` files are read
with torch's weights-only reader.
"""

from __future__ import annotations

import importlib
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from tvm_mobilenet.errors import UsageError, WeightsError
from tvm_mobilenet.files import new_file, sha256_of
from tvm_mobilenet.models.bottleneck import pad_like_tensorflow
from tvm_mobilenet.models.network import Network
from tvm_mobilenet.models.preprocess import default_preprocessing, for_resolution
from tvm_mobilenet.models.pruned import fit_widths
from tvm_mobilenet.models.publishers import Publisher
from tvm_mobilenet.models.spec import (
    FAMILIES,
    ModelSpec,
    check_num_classes,
    get_model_spec,
)
from tvm_mobilenet.models.weight_file import (
    METADATA_KEY,
    WeightsDescription,
    damaged,
    describe_weights,
)
from tvm_mobilenet.records import ClassList, ModelOrigin, Preprocessing

__all__ = [
    "CreatedModel",
    "LoadedWeights",
    "batch_norm_eps",
    "create_model",
    "load_weights",
    "random_weights",
    "save_weights",
]

_NAMED_KEYS = 4
_CALIBRATION_SAMPLES = 128
_CALIBRATION_BITS = 12
Module = Network
State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """A weight file that was read, and what it says about itself."""

    path: Path
    sha256: str
    layout: Literal["tvm_mobilenet", "timm", "torchvision"]
    num_classes: int
    description: WeightsDescription | None
    """None where the file is not one of ours."""
    publisher: Publisher | None = None
    """None where the file is in our own layout."""

    @property
    def class_names(self) -> ClassList | None:
        """Class names in the order of the logits, where the file has them."""
        return self.description.class_names if self.description else None

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What the weights were trained on, where the file or its publisher says so."""
        return self.description.preprocessing if self.description else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedModel:
    """A torch module ready for inference, with all that is known about its weights."""

    spec: ModelSpec
    module: Module
    origin: ModelOrigin
    preprocessing: Preprocessing
    class_names: ClassList | None


def create_model(
    name: str,
    *,
    weights: Path | str | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> CreatedModel:
    """Build a model by name, with the weights of a file or with seeded random ones.

    Args:
        name: of a family and a size, such as `mobilenet_v2_0.35_96`.
        weights: a `.safetensors` or `.pth` file; None for random weights.
        num_classes: None for as many as the file has, or the family's number without a file.
        seed: of the random weights.

    Raises:
        UnknownModelError, SpecError: of the name.
        WeightsError: the file is damaged, unsafe, or belongs to another model.
    """
    spec = get_model_spec(name)
    if num_classes is not None:
        check_num_classes(num_classes)
    default_classes = FAMILIES[spec.family].default_classes
    if weights is None:
        module = new_module(spec, num_classes or default_classes)
        random_weights(module, spec.resolution, seed)
        module.settle_random()
        return CreatedModel(
            spec=spec,
            module=module,
            origin=ModelOrigin(
                name=spec.name,
                weights=f"random (seed {seed})",
                is_random=True,
                num_classes=module.num_classes,
            ),
            preprocessing=default_preprocessing(spec.resolution, spec.task),
            class_names=None,
        )
    path = Path(weights)
    module_class = _module_class(spec)
    state, publisher = _read(path, module_class.publishers())
    # Without a classifier in the file, filling will say that it is missing.
    module = new_module(spec, num_classes or module_class.classes_in(state) or default_classes)
    loaded = _fill(path, state, publisher, module)
    preprocessing = loaded.preprocessing or (
        publisher.preprocessing(spec.resolution)
        if publisher
        else default_preprocessing(spec.resolution, spec.task)
    )
    class_names = loaded.class_names
    if publisher is not None and len(publisher.class_names or ()) == module.num_classes:
        class_names = publisher.class_names
    return CreatedModel(
        spec=spec,
        module=module,
        origin=ModelOrigin(
            name=spec.name,
            weights=path.name,
            weights_sha256=loaded.sha256,
            is_random=False,
            num_classes=module.num_classes,
        ),
        preprocessing=for_resolution(preprocessing, spec.resolution),
        class_names=class_names,
    )


def new_module(spec: ModelSpec, num_classes: int, **options: Any) -> Module:
    """Build the torch module of a model, its weights as torch leaves them."""
    module_class = _module_class(spec)
    with torch.random.fork_rng(devices=[]):  # torch draws weights that nobody keeps
        module: Module = module_class(spec.alpha, num_classes=num_classes, **options)
    return module


def _module_class(spec: ModelSpec) -> type[Module]:
    module_name, class_name = FAMILIES[spec.family].module.split(":")
    module_class: type[Module] = getattr(importlib.import_module(module_name), class_name)
    return module_class


def load_weights(path: Path | str, module: Module) -> LoadedWeights:
    """Fill a module from a file, in our own key layout or a publisher's, and set it to inference.

    Raises:
        WeightsError: the file is damaged, unsafe, or belongs to another model.
    """
    path = Path(path)
    return _fill(path, *_read(path, module.publishers()), module)


def save_weights(module: nn.Module, path: Path | str, description: WeightsDescription) -> Path:
    """Write a module's weights with their description; the file appears whole or not at all.

    The same weights and description give the same bytes.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"weights {path}: weights are written as .safetensors; name it so")
    tensors = {key: value.contiguous() for key, value in _own_state(module).items()}
    text = description.model_dump_json(exclude=None if description.pruned else {"pruned"})
    metadata = {METADATA_KEY: text}
    with new_file(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))
    return path


def random_weights(module: nn.Module, resolution: int, seed: int) -> None:
    """Fill a module with seeded random weights that keep the activations alive to the last layer.

    Convolutions are drawn after He et al. 2015 (arXiv:1502.01852), scale and shift of the batch
    norms at random too, so that folding them matters. The batch norms' mean and variance are then
    measured on seeded noise: with those of an untrained network the activations fade within a few
    layers, and comparing two implementations would compare zeros.

    The measuring is done in float64 and its results rounded, so that they do not depend on the
    order in which a processor adds.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.Conv2d):
                child.weight.normal_(0, math.sqrt(2 / child.weight[0].numel()), generator=generator)
                if child.bias is not None:
                    child.bias.uniform_(-0.5, 0.5, generator=generator)
            elif isinstance(child, nn.BatchNorm2d):
                # About 30 % of a layer ends up clipped at 0 and 1 % at 6, so both count. Shifts
                # around 0 clip half of it, and rounding errors then grow sixfold by the end.
                child.weight.uniform_(1.0, 3.0, generator=generator)
                child.bias.uniform_(0.0, 2.0, generator=generator)
            elif isinstance(child, nn.Linear):
                child.weight.normal_(0, 1 / math.sqrt(child.in_features), generator=generator)
                child.bias.uniform_(-0.5, 0.5, generator=generator)
        _calibrate(module, resolution, generator)


def batch_norm_eps(module: Module) -> float:
    """Return the epsilon that a module's batch norms share."""
    (eps,) = {child.eps for child in module.shared_norms()}
    return eps


def _calibrate(module: nn.Module, resolution: int, generator: torch.Generator) -> None:
    """Measure mean and variance of every batch norm on one batch of noise."""
    final_map = math.ceil(resolution / 32) ** 2
    batch = max(2, math.ceil(_CALIBRATION_SAMPLES / final_map))
    noise = torch.randn(batch, 3, resolution, resolution, generator=generator, dtype=torch.float64)
    norms = list(_batch_norms(module))
    momenta = [norm.momentum for norm in norms]
    pooled: set[nn.Module] = set()
    hooks = [norm.register_forward_pre_hook(_noting_pooled(pooled)) for norm in norms]
    module.eval().double()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # the batch's own statistics, nothing of what was there
    module(noise)
    for hook in hooks:
        hook.remove()
    module.float().eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if norm in pooled:
            # Pictures of noise hardly differ once they are pooled: dividing by that deviation
            # would make differences out of rounding errors. The second moment stands in for it.
            norm.running_var += norm.running_mean**2
            norm.running_mean.zero_()
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            mantissa, exponent = torch.frexp(statistic)
            steps = 2.0**_CALIBRATION_BITS
            statistic.copy_(torch.ldexp(torch.round(mantissa * steps) / steps, exponent))


def _noting_pooled(pooled: set[nn.Module]) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
    """Return a hook that remembers modules which see one pixel a picture, and few pictures."""

    def note(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0].shape[2:] == (1, 1) and inputs[0].shape[0] < _CALIBRATION_SAMPLES:
            pooled.add(module)

    return note


def _batch_norms(module: nn.Module) -> Iterable[nn.BatchNorm2d]:
    return (child for child in module.modules() if isinstance(child, nn.BatchNorm2d))


def _own_state(module: nn.Module) -> State:
    """Return the state dict without the batch counters, which inference does not use."""
    state = module.state_dict()
    return {key: value for key, value in state.items() if not key.endswith(_COUNTER)}


_COUNTER = ".num_batches_tracked"


def _read(path: Path, publishers: Iterable[Publisher]) -> tuple[State, Publisher | None]:
    """Read a file's tensors in our layout, and say whose layout they came in."""
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        state = _read_pth(path)
    else:
        raise WeightsError(
            f"weights {path}: {path.suffix or 'no suffix'!r} is no format that is read; "
            "give a .safetensors or .pth file"
        )
    state = {
        key.removeprefix("module."): value
        for key, value in state.items()
        if not key.endswith(_COUNTER)
    }
    for publisher in publishers:
        if publisher.marker in state:
            renamed = {
                publisher.renamed(key): value
                for key, value in state.items()
                if publisher.left_out is None or not key.startswith(publisher.left_out)
            }
            return renamed, publisher.of_file(path)
    return state, None


def _read_safetensors(path: Path) -> State:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError, ValueError) as err:
        raise damaged(path, err) from err


def _read_pth(path: Path) -> State:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle protocol, of files that are refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        match = re.search(r"GLOBAL (\S+)", str(err))
        found = f"it holds {match[1]}" if match else "it holds something else, or is damaged"
        raise WeightsError(
            f"weights {path}: only tensors are read from a .pth file, for a pickle can run code, "
            f"but {found}; save the state dict alone, best as .safetensors"
        ) from err
    # The reader raises whatever a damaged file leads it into.
    except Exception as err:
        raise damaged(path, err) from err
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    ):
        raise WeightsError(
            f"weights {path}: found no state dict, which is a name for each tensor; save "
            "`model.state_dict()`"
        )
    return dict(content)


def _fill(path: Path, state: State, publisher: Publisher | None, module: Module) -> LoadedWeights:
    description = describe_weights(path)
    if publisher is not None:
        state = _as_dense(state, module)
    if description is not None and description.pruned is not None:
        fit_widths(module, state, path)
    _check_fits(path, state, module)
    module.load_state_dict(
        {key: value.to(torch.float32) for key, value in state.items()}, strict=False
    )
    eps = description.batch_norm_eps if description else None
    if publisher is not None:
        eps = publisher.batch_norm_eps
    for norm in module.shared_norms():
        norm.eps = eps or norm.eps
    pad_like_tensorflow(module, publisher is not None and publisher.pads_like_tensorflow)
    module.eval()
    return LoadedWeights(
        path=path,
        sha256=sha256_of(path),
        layout=publisher.name if publisher else "tvm_mobilenet",
        num_classes=module.num_classes,
        description=description,
        publisher=publisher,
    )


def _as_dense(state: State, module: Module) -> State:
    """Take 1x1 convolutions of a pooled pixel as the dense layers that they are."""
    dense = {f"{name}.weight" for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    return {
        key: value.flatten(1) if key in dense and value.shape[2:] == (1, 1) else value
        for key, value in state.items()
    }


def _check_fits(path: Path, state: State, module: Module) -> None:
    """Refuse tensors that are not exactly those of the module."""
    expected = _own_state(module)
    wrong = [k for k, value in expected.items() if k in state and state[k].shape != value.shape]
    shapes = [
        f"{key} is {tuple(state[key].shape)} and should be {tuple(expected[key].shape)}"
        for key in wrong
    ]
    found_alpha = module.alpha_of(state)
    if (
        not all(map(module.is_of_classes, wrong))
        and found_alpha is not None
        and found_alpha != module.alpha
    ):
        raise WeightsError(
            f"weights {path}: they are for alpha {found_alpha:g}, but the model has alpha "
            f"{module.alpha:g}; choose the model of alpha {found_alpha:g}, or other weights"
        )
    classes = module.classes_in(state)
    are_of_classes = wrong and all(map(module.is_of_classes, wrong))
    if are_of_classes and classes not in (None, module.num_classes):
        raise WeightsError(
            f"weights {path}: they tell {classes} classes apart, but {module.num_classes} are "
            "asked for; leave the number of classes out to take the file's"
        )
    problems = [
        _listing("missing", [key for key in expected if key not in state]),
        _listing("left over", [key for key in state if key not in expected]),
        _listing("of another shape", shapes),
    ]
    if any(problems):
        raise WeightsError(
            f"weights {path}: they do not belong to this model: "
            f"{'; '.join(filter(None, problems))}; choose the model they were made for"
        )
    for key, value in state.items():
        if not value.is_floating_point():
            raise WeightsError(
                f"weights {path}: {key} is {str(value.dtype).removeprefix('torch.')}; "
                "only floating-point weights are read"
            )
        if not torch.isfinite(value.to(torch.float32)).all():
            raise WeightsError(f"weights {path}: {key} holds infinities or NaN; train it again")


def _listing(problem: str, keys: list[str]) -> str:
    """Return `missing: a, b and 3 more`, or nothing where there is no such key."""
    if not keys:
        return ""
    more = f" and {len(keys) - _NAMED_KEYS} more" if len(keys) > _NAMED_KEYS else ""
    return f"{problem}: {', '.join(keys[:_NAMED_KEYS])}{more}"
