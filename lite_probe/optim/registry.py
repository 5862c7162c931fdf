"""Every optimizer of ours, each told by one `OptimizerSpec`: all that the rest of lite-probe asks about it.

To add one: write a `Geometry` where no known one serves, and register a spec of it, here or from outside. Of ours each
is asked the questions of tests/optim, which want a learning rate that suits it in test_optimizers.py and
test_amplification.py.

    register_optimizer(
        OptimizerSpec(
            name="mine",
            hyperparameters={"momentum": Hyperparameter(default=0.9, bounds=BELOW_ONE), "weight_decay": WEIGHT_DECAY},
            geometries=(Mine(),),
        )
    )
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lite_probe.errors import UsageError
from lite_probe.optim.buckets import Piece, is_hidden_matrix
from lite_probe.optim.diagonal import Diagonal
from lite_probe.optim.euclidean import Euclidean
from lite_probe.optim.geometry import Geometry, Hyperparameters, LiteSettings
from lite_probe.optim.hyperparameters import (
    BELOW_ONE,
    COUNT,
    DAMPING,
    PERIOD,
    POSITIVE,
    RANK,
    RATIO,
    SHARE,
    STEPS,
    UP_TO_MILLION,
    Hyperparameter,
)
from lite_probe.optim.kronecker import Kronecker
from lite_probe.optim.msign import COEFFICIENTS, LR_SCALES, Orthogonal
from lite_probe.optim.theory import (
    LinearRecipes,
    diagonal_recipes,
    euclidean_recipes,
    kronecker_recipes,
    orthogonal_recipes,
)
from lite_probe.results.blocks import BLOCK_NAMES

GeometryChoice = Callable[[Sequence[int], str, bool], Geometry]  # by shape, block, and whether it is a table
LinearRule = Callable[[Hyperparameters, Piece, LiteSettings], LinearRecipes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedState:
    """What somebody else's optimizer saved about a parameter, under the names of ours."""

    tensors: Mapping[str, Tensor]  # of the parameter's shape
    step: int | None = None  # completed updates; None where they were not counted
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)  # that were saved with it


# By the entries of a parameter and its group; None: not its. Parameters are found by the names saved with them, or by
# their order where entries have a name of torch's.
StateImporter = Callable[[Mapping[Any, Any], Mapping[Any, Any]], ImportedState | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """What lite-probe knows of one optimizer.

    Raises:
        UsageError: If the name cannot be one, a default is not what its hyperparameter may be, or bounds are empty.
    """

    name: str
    base: str | None = None  # the optimizer that this is LITE's variant of
    hyperparameters: Mapping[str, Hyperparameter]  # `weight_decay` among them; `lr` is everybody's
    geometries: tuple[Geometry, ...]
    choose_geometry: GeometryChoice | None = None  # where there are several
    needs_blocks: bool = False  # whether a matrix of an unknown block is refused
    takes_any_shape: bool = False  # else vectors, matrices and stacks of matrices
    linear: LinearRule | None = None  # what it is to one direction of a quadratic; None: no linear theory
    importer: StateImporter | None = None  # reads states that no kind of its geometries names; None: there are none
    orders_bands: bool = False  # whether its proxy may order the directions of a replay
    is_default_proxy: bool = False  # whether subspaces are compared with its proxy unless asked otherwise

    def __post_init__(self) -> None:
        """Refuse what no optimizer can be made of."""
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise UsageError(
                f"expected lowercase letters and digits, joined by -, as an optimizer's name, got {self.name!r}"
            )
        if "weight_decay" not in self.hyperparameters:
            raise UsageError(
                f"expected a hyperparameter weight_decay of {self.name}, got none", "its default may be 0.0"
            )
        if not self.geometries or (self.choose_geometry is None and len(self.geometries) > 1):
            raise UsageError(
                f"expected one geometry of {self.name}, or several and choose_geometry, got {len(self.geometries)}"
            )
        for key, one in self.hyperparameters.items():
            if one.bounds is not None and not one.bounds.low <= one.bounds.high:
                raise UsageError(
                    f"expected bounds of {key} of {self.name} from low to high, got {one.bounds.low:g} and "
                    f"{one.bounds.high:g}"
                )
            try:
                one.require(key, one.default)
            except UsageError as problem:
                raise UsageError(f"{problem}, as the default of {self.name}") from None

    @property
    def settable(self) -> dict[str, Hyperparameter]:
        """The hyperparameters that a user may set."""
        return {key: one for key, one in self.hyperparameters.items() if one.is_settable}

    def geometry(self, shape: Sequence[int], block: str, is_table: bool) -> Geometry:
        """Return the geometry of a parameter, or of a matrix fused into it."""
        return self.geometries[0] if self.choose_geometry is None else self.choose_geometry(shape, block, is_table)


_SPECS: dict[str, OptimizerSpec] = {}
OPTIMIZERS: Mapping[str, OptimizerSpec] = MappingProxyType(_SPECS)  # by name, in the order of registration


def register_optimizer(spec: OptimizerSpec) -> None:
    """Make an optimizer known by its name, to `make_optimizer` and to all that measures with one.

    Raises:
        UsageError: If the name is taken, or its base is not known.
    """
    if spec.name in _SPECS:
        raise UsageError(f"expected a name that no optimizer has, got {spec.name!r}", "unregister_optimizer it first")
    if spec.base is not None:
        spec_of(spec.base)
    _SPECS[spec.name] = spec


def unregister_optimizer(name: str) -> None:
    """Forget an optimizer that was registered.

    Raises:
        UsageError: If there is none of that name.
    """
    del _SPECS[spec_of(name).name]


def spec_of(name: str, hint: str = "") -> OptimizerSpec:
    """Return what is known of an optimizer.

    Args:
        name: Its name, or that with a label behind @, as in muon-lite@mild: several settings of one optimizer, side by
            side.
        hint: What else to do where there is none.

    Raises:
        UsageError: If there is none of that name; it lists the known.
    """
    plain, at, label = name.partition("@")
    if plain not in _SPECS:
        raise UsageError(f"expected an optimizer among {', '.join(_SPECS)}, got {name!r}", hint)
    if at and not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", label):
        raise UsageError(f"expected letters and digits, joined by -, as a label behind @, got {name!r}")
    return _SPECS[plain]


def names_of(has_trait: Callable[[OptimizerSpec], bool]) -> tuple[str, ...]:
    """Return the names of those that have a trait, in the order of registration."""
    return tuple(name for name, spec in _SPECS.items() if has_trait(spec))


def band_optimizers() -> tuple[str, ...]:
    """Return the names of those whose proxy may order the directions of a replay."""
    return names_of(lambda spec: spec.orders_bands)


def default_proxies() -> tuple[str, ...]:
    """Return the names of those whose proxies subspaces are compared with, unless others are asked for."""
    return names_of(lambda spec: spec.is_default_proxy)


# -- hyperparameters ---------------------------------------------------------------------------------------------------

WEIGHT_DECAY = Hyperparameter(default=0.1, bounds=UP_TO_MILLION)

_EPS = Hyperparameter(default=1e-8, bounds=POSITIVE)
_ADAMW: Mapping[str, Hyperparameter] = {
    "adamw_beta1": Hyperparameter(default=0.9, bounds=BELOW_ONE),
    "adamw_beta2": Hyperparameter(default=0.99, bounds=BELOW_ONE),
    "adamw_damping": Hyperparameter(default=False, is_settable=False),
    "eps": _EPS,
    # Where ε is added to √v: before the bias correction, or after it as torch does.
    "eps_after_correction": Hyperparameter(default=False),
    "weight_decay": WEIGHT_DECAY,
}
_MUON: Mapping[str, Hyperparameter] = {
    **_ADAMW,
    "momentum": Hyperparameter(default=0.95, bounds=BELOW_ONE),
    "ns_steps": Hyperparameter(default=6, bounds=STEPS),
    "ns_coefficients": Hyperparameter(default="polar-express", choices=tuple(COEFFICIENTS)),
    "msign_dtype": Hyperparameter(default=None, choices=("float32", "bfloat16")),
    "lr_scale": Hyperparameter(default="match-rms-adamw", choices=tuple(LR_SCALES)),
}
_SOAP: Mapping[str, Hyperparameter] = {
    "betas": Hyperparameter(default=(0.95, 0.95), bounds=BELOW_ONE),
    "shampoo_beta": Hyperparameter(default=None, bounds=BELOW_ONE),  # that of L and R; None: betas[1]
    "eps": _EPS,
    "weight_decay": Hyperparameter(default=0.01, bounds=UP_TO_MILLION),
    "precondition_frequency": Hyperparameter(default=10, bounds=PERIOD),
    "max_precond_dim": Hyperparameter(default=10_000, bounds=COUNT),
}
_SGD: Mapping[str, Hyperparameter] = {
    "momentum": Hyperparameter(default=0.0, bounds=BELOW_ONE),
    "weight_decay": Hyperparameter(default=0.0, bounds=UP_TO_MILLION),
}
# What LITE adds. The ratios by block are those of the published runs: head and routers are left alone, embeddings and
# norms go further than hidden matrices.
_LITE: Mapping[str, Hyperparameter] = {
    "beta1": Hyperparameter(default=0.0, bounds=DAMPING),
    "beta2": Hyperparameter(default=1.0, bounds=DAMPING),
    "flat_lr_ratio": Hyperparameter(
        default={**dict.fromkeys(BLOCK_NAMES, 2.0), "emb": 4.0, "norm": 4.0, "out": 1.0, "router": 1.0}, bounds=RATIO
    ),
    "sharp_ratio": Hyperparameter(default={**dict.fromkeys(BLOCK_NAMES, 0.1), "out": 1.0, "router": 1.0}, bounds=SHARE),
    "smooth_ratio": Hyperparameter(default=0.1, bounds=SHARE),
    "schedule": Hyperparameter(default="constant", is_ramp=True),
    "total_steps": Hyperparameter(default=None, is_ramp=True),
    "warmup_steps": Hyperparameter(default=0, is_ramp=True),
    "min_lr_ratio": Hyperparameter(default=0.0, is_ramp=True),
    "stable_ratio": Hyperparameter(default=0.8, is_ramp=True),
}
# How many singular directions of Muon's matrices are sharp, in place of `sharp_ratio`; None: as that says.
_NO_RANK = Hyperparameter(default=dict.fromkeys(BLOCK_NAMES), bounds=RANK, is_whole=True)
# SAMuon, arXiv 2608.25990: the first singular direction by itself, the others γ times as long, γ = `flat_lr_ratio`. It
# is Muon-LITE at rank 1, undamped; embedding, head, norms and routers are left alone.
_ALONE = ("emb", "out", "norm", "router")
_SAMUON: Mapping[str, Hyperparameter] = {
    "flat_lr_ratio": Hyperparameter(
        default={**dict.fromkeys(BLOCK_NAMES, 2.0), **dict.fromkeys(_ALONE, 1.0)}, bounds=RATIO
    ),
    "sharp_rank": Hyperparameter(
        default={**dict.fromkeys(BLOCK_NAMES, 1), **dict.fromkeys(_ALONE)}, bounds=RANK, is_whole=True
    ),
    "beta1": Hyperparameter(default=0.0, is_settable=False),
    "beta2": Hyperparameter(default=0.0, is_settable=False),
    "sharp_ratio": Hyperparameter(default=dict.fromkeys(BLOCK_NAMES, 1.0), is_settable=False),  # without a rank: Muon
    "smooth_ratio": Hyperparameter(default=0.1, is_settable=False),
}

# -- optimizers --------------------------------------------------------------------------------------------------------

_ORTHOGONAL, _KRONECKER, _DIAGONAL, _EUCLIDEAN = Orthogonal(), Kronecker(), Diagonal(), Euclidean()


def _muons_geometry(shape: Sequence[int], block: str, is_table: bool) -> Geometry:
    return _ORTHOGONAL if is_hidden_matrix(shape, block) and not is_table else _DIAGONAL


def _muons_recipes(group: Hyperparameters, piece: Piece, lite: LiteSettings) -> LinearRecipes:
    recipes = orthogonal_recipes if piece.geometry.name == _ORTHOGONAL.name else diagonal_recipes
    return recipes(group, piece, lite)


def _register_ours() -> None:
    """Register each optimizer, and LITE's variant of it."""
    adamw = OptimizerSpec(
        name="adamw",
        hyperparameters=_ADAMW,
        geometries=(_DIAGONAL,),
        takes_any_shape=True,
        linear=diagonal_recipes,
        orders_bands=True,
    )
    muon = OptimizerSpec(
        name="muon",
        hyperparameters=_MUON,
        geometries=(_DIAGONAL, _ORTHOGONAL),
        choose_geometry=_muons_geometry,
        needs_blocks=True,
        linear=_muons_recipes,
        orders_bands=True,
    )
    soap = OptimizerSpec(
        name="soap",
        hyperparameters=_SOAP,
        geometries=(_KRONECKER,),
        linear=kronecker_recipes,
        orders_bands=True,
    )
    sgd = OptimizerSpec(
        name="sgd",
        hyperparameters=_SGD,
        geometries=(_EUCLIDEAN,),
        takes_any_shape=True,
        linear=euclidean_recipes,
    )
    for base, damps_adamw in ((adamw, True), (muon, False), (soap, None)):
        register_optimizer(base)
        damping = {} if damps_adamw is None else {"adamw_damping": Hyperparameter(default=damps_adamw)}
        ranks = {"sharp_rank": _NO_RANK} if base is muon else {}
        register_optimizer(
            replace(
                base,
                name=f"{base.name}-lite",
                base=base.name,
                hyperparameters={**base.hyperparameters, **damping, **_LITE, **ranks},
                needs_blocks=True,
                orders_bands=False,
                is_default_proxy=True,
            )
        )
    register_optimizer(sgd)
    samuon = {**muon.hyperparameters, **_SAMUON}
    register_optimizer(replace(muon, name="samuon", base=muon.name, hyperparameters=samuon, orders_bands=False))


_register_ours()
