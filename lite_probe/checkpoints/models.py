"""From a model config and weights to a model that can be differentiated twice.

The model is first built on the meta device, where a config that does not fit the weights costs nothing; only
then is memory taken. Loading itself is transformers' own, tensor by tensor, since it alone knows how files of
older versions map onto its modules (experts saved one by one, fused in the model).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lite_probe.checkpoints.json_files import MAX_VALUES, read_json_object, with_floats
from lite_probe.checkpoints.weights import Weights
from lite_probe.errors import InputError, LiteProbeError, NumericsError, shown, shown_name

# Names under which configs count what becomes one Python module each.
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MAX_EXPERTS = 65_536
_MAX_LAYERS = 1_000  # of a config without weights
_MAX_BUFFER_BYTES = 2**31  # causal masks and rotary tables; a position count that wants more is damage
_NAMES_SHOWN = 6
OTHER_MODELS_HINT = "pass --task FILE.py:FUNCTION for any other model and loss"

Adapt = Callable[[nn.Module], None]


def leave_as_is(_: nn.Module) -> None:
    """Change nothing about a model after loading."""


def parse_config(model_config: Mapping[str, Any], *, num_tensors: int) -> transformers.PreTrainedConfig:
    """Turn a config's plain values into transformers' config object.

    Args:
        model_config: The content of a `config.json`.
        num_tensors: Of the weights; a model has no more layers than tensors.

    Returns:
        The config, with settings that differentiate twice: eager attention and experts, no cache.

    Raises:
        InputError: If the architecture is unknown or the values make no config.
    """
    family = model_config.get("model_type")
    if not isinstance(family, str) or family not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"expected a model_type that transformers {transformers.__version__} knows, got {shown(family)}",
            "pass --model-config with the right model_type, or --task FILE.py:FUNCTION for a model of your own",
        )
    if "quantization_config" in model_config:
        raise InputError(
            "expected weights in floating point, got a quantized model (quantization_config)",
            "dequantize it first: a Hessian needs weights that can move",
        )
    _check_counts(model_config, num_tensors)
    # Keys with an underscore choose kernels, also ones from the hub; lite-probe chooses its own.
    plain = {key: value for key, value in model_config.items() if not key.startswith("_") and key != "auto_map"}
    plain = with_floats(plain)
    try:
        with quiet_transformers():
            config = transformers.CONFIG_MAPPING[family].from_dict(plain)
            config.use_cache = False
    except Exception as error:  # a config of nonsense can fail anywhere in transformers
        raise _config_error(family, error) from error
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"expected a causal language model, got model_type {family!r}",
            OTHER_MODELS_HINT,
        )
    _check_causal(config)
    return config


def _check_causal(config: transformers.PreTrainedConfig) -> None:
    """Refuse what shares its family with a causal language model and is none: its weights would load all the same.

    Raises:
        InputError: If the config's `architectures` are known and none is causal, if it is an encoder's and a decoder's,
            or if its attention looks ahead.
    """
    named = config.architectures
    names = [named] if isinstance(named, str) else [name for name in named or () if isinstance(name, str)]
    if names and not any(name in _CAUSAL_ARCHITECTURES or name.endswith(_CAUSAL_ENDINGS) for name in names):
        raise InputError(
            f"expected the architecture of a causal language model, got {', '.join(map(shown_name, names[:4]))}",
            OTHER_MODELS_HINT,
        )
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"expected a causal language model, got a {config.model_type} with encoder and decoder", OTHER_MODELS_HINT
        )
    # Encoders are built as language models, too, and look ahead unless they are told that they decode.
    if type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and False in (
        getattr(config, "is_decoder", None),
        getattr(config, "causal", None),
    ):
        raise InputError(
            f"expected a causal language model, got a {config.model_type} that looks ahead (is_decoder is false)",
            OTHER_MODELS_HINT,
        )


def _causal_architectures() -> frozenset[str]:
    names: set[str] = set()
    for name in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        names |= {name} if isinstance(name, str) else set(name)
    return frozenset(names)


_CAUSAL_ARCHITECTURES = _causal_architectures()
_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")  # names of models that transformers has since renamed


def _check_counts(model_config: Mapping[str, Any], num_tensors: int) -> None:
    """Refuse counts of modules that would take hours to build; other nonsense fails quickly in transformers."""
    limits = dict.fromkeys(_LAYER_COUNTS, num_tensors) | dict.fromkeys(_EXPERT_COUNTS, _MAX_EXPERTS)
    for name, value in model_config.items():
        if isinstance(value, Mapping):
            _check_counts(value, num_tensors)
        elif name in limits and isinstance(value, int) and value > limits[name]:
            raise InputError(
                f"expected {name} of at most {limits[name]:,} for these weights, got {shown(value)}",
                "the config does not belong to these weights; pass the right one with --model-config",
            )


def _config_error(family: str, error: BaseException) -> InputError:
    reason = str(error).strip().replace("\n", " ")[:300] or type(error).__name__
    return InputError(
        f"expected a config that makes a {family} model, got one that does not: {reason}",
        "restore config.json, or pass the right one with --model-config",
    )


def build_skeleton(config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    """Build the model on the meta device, in evaluation mode: names, shapes and ties, no storage.

    Raises:
        InputError: If the config makes no model.
    """
    try:
        with quiet_transformers(), torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", experts_implementation="eager"
            )
            model.tie_weights()  # which transformers 5.0 leaves out on the meta device
    except Exception as error:  # a config of nonsense can fail anywhere in transformers
        raise _config_error(config.model_type, error) from error
    return model.eval()


def read_skeleton(path: Path) -> transformers.PreTrainedModel:
    """Build, on the meta device, the model that a config file describes: it may have no weights yet.

    Args:
        path: A `config.json`.

    Raises:
        InputError: If the file cannot be read, or makes no causal language model.
    """
    return build_skeleton(parse_config(read_json_object(path, max_values=MAX_VALUES), num_tensors=_MAX_LAYERS))


def architecture_of(config: transformers.PreTrainedConfig, name: str) -> str:
    """Return one line for people: `llama · 6 layers · hidden 256`."""
    layers = getattr(config, "num_hidden_layers", None)
    hidden = getattr(config, "hidden_size", None)
    parts = [
        name,
        f"{layers} layer{'' if layers == 1 else 's'}" if layers else "",
        f"hidden {hidden:,}" if hidden else "",
    ]
    return " · ".join(part for part in parts if part)


def load_model(
    skeleton: transformers.PreTrainedModel,
    weights: Weights,
    *,
    adapt: Adapt = leave_as_is,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Build the model and load every weight into it.

    Args:
        skeleton: From `build_skeleton`, `adapt` applied.
        weights: All of the model's tensors.
        adapt: Last changes to the loaded model.
        device: Where it goes after loading.
        dtype: Of its parameters.

    Returns:
        The model in evaluation mode, tied weights tied, each parameter owning its memory.

    Raises:
        InputError: If a tensor is missing, left over, of another shape, or the files are damaged.
        NumericsError: If a weight is NaN or infinite.

    Cost: one copy of the weights, one pass over the files for their checksums and one to read them.
    """
    config = skeleton.config
    _check_sizes(skeleton, weights)
    weights.verify()
    tensors = {name: _Reading(weights, name) for name in weights.metas}
    try:
        with quiet_transformers():
            model: nn.Module
            model, report = type(skeleton).from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                attn_implementation="eager",
                experts_implementation="eager",
                ignore_mismatched_sizes=True,  # they come back in the report
                output_loading_info=True,
                local_files_only=True,
            )
    except Exception as error:  # transformers wraps what a reader raised, and adds errors of its own
        for tensor in tensors.values():
            if tensor.error is not None:
                raise tensor.error from error
        reason = str(error).strip().replace("\n", " ")[:300] or type(error).__name__
        raise InputError(
            f"expected weights that load into a {config.model_type} model, got {reason}",
            "the config does not belong to these weights; pass the right one with --model-config",
        ) from error
    _check_report(report, skeleton, weights)
    adapt(model)
    _check_finite(model)
    return model.eval().to(device)


class _Reading:
    """One tensor, read when transformers slices it; a copy, so that no parameter aliases a mapped file."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._weights = weights
        self._name = name
        self.error: LiteProbeError | None = None

    def __getitem__(self, index: EllipsisType) -> Tensor:
        try:
            return self._weights.read(self._name)[index].clone(memory_format=torch.contiguous_format)
        except LiteProbeError as error:
            self.error = error
            raise


def _check_sizes(skeleton: nn.Module, weights: Weights) -> None:
    """Refuse, before memory is taken, a model larger than its weights."""
    shapes = {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}
    for name, shape in shapes.items():
        found = weights.metas.get(name)
        if found is not None and tuple(found.shape) != shape:
            raise _shape_error(name, shape, tuple(found.shape))
    needed = sum(parameter.numel() for parameter in skeleton.parameters())
    if needed > weights.num_elements:
        absent = sorted(set(shapes) - set(weights.metas))
        raise InputError(
            f"expected weights for a model of {needed:,} parameters, got {weights.num_elements:,} elements; "
            f"not found by name: {_some(absent)}",
            "the config does not belong to these weights, or a shard is missing; pass the right --model-config",
        )
    buffer_bytes = sum(buffer.numel() * buffer.element_size() for buffer in skeleton.buffers())
    if buffer_bytes > _MAX_BUFFER_BYTES:
        raise InputError(
            f"expected at most {_MAX_BUFFER_BYTES:,} bytes of masks and position tables, got {buffer_bytes:,}",
            "check the maximum sequence length in the config",
        )


def _check_report(report: Mapping[str, Any], skeleton: nn.Module, weights: Weights) -> None:
    """Refuse what transformers would have initialised at random or left out.

    What `adapt` took from the skeleton needs no weights.
    """
    wanted = {name for name, _ in skeleton.named_parameters()}
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise _shape_error(name, tuple(expected), tuple(found))
    missing = sorted(wanted & set(report["missing_keys"]))
    if missing:
        raise InputError(
            f"expected a weight for each parameter, got none for {_some(missing)}",
            "a shard is missing, or the config does not belong to these weights; pass the right --model-config",
        )
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        raise InputError(
            f"expected {len(weights.metas) - len(unexpected)} tensors, got also {_some(unexpected)}, "
            "which the model has no place for",
            "the config does not belong to these weights; pass the right --model-config",
        )


def _shape_error(name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> InputError:
    return InputError(
        f"expected {shown_name(name)} of shape {expected} by the config, got {shown(found)}",
        "the config does not belong to these weights; pass the right one with --model-config",
    )


def _some(names: list[str]) -> str:
    first = ", ".join(shown_name(name) for name in names[:_NAMES_SHOWN])
    return f"{first} and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else first


def _check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        # One pass without temporaries; a NaN anywhere makes both of them NaN.
        extremes = torch.stack(torch.aminmax(parameter.detach())) if parameter.numel() else parameter
        if not torch.isfinite(extremes).all():
            bad = parameter.numel() - int(torch.isfinite(parameter).sum())
            raise NumericsError(
                f"expected finite weights, got {bad:,} NaN or infinite of {parameter.numel():,} in {name}",
                "the run diverged before this checkpoint, or the file is damaged; take an earlier one",
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' bars and warnings; what matters in them comes back as errors and notes."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
