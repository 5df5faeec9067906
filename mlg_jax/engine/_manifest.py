"""The part of a packed file that is no tensor, checked: model, preprocessing, names, metrics."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import mlg_jax
from mlg_jax._checks import check_instance, check_real
from mlg_jax._errors import MAX_LINE, printable
from mlg_jax.engine._images import ImagePreprocessing
from mlg_jax.engine._network import ModuleSpec, NetworkSpec, spec_from_json
from mlg_jax.export import PackedFileError, PackedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a file says besides its tensors.

    Args:
        model: makes the network, or names the module that it is.
        preprocessing: of uint8 images; None: not known.
        class_names: one a logit; empty: not known.
        metrics: finite numbers by name, as they were when the file was written.

    Raises:
        TypeError, ValueError: an argument of another type, or names that are not one a logit.
    """

    model: NetworkSpec
    preprocessing: ImagePreprocessing | None = None
    class_names: tuple[str, ...] = ()
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_instance("preprocessing", self.preprocessing, (ImagePreprocessing, type(None)))
        check_instance("class_names", self.class_names, (tuple, list))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        for name in self.class_names:
            check_instance("class_names", name, str)
        if self.class_names and len(self.class_names) != self.model.num_classes:
            raise ValueError(
                f"`class_names` must be {self.model.num_classes}, one a logit; "
                f"got {len(self.class_names)}."
            )
        check_instance("metrics", self.metrics, Mapping)
        for name, value in self.metrics.items():
            check_instance("metrics", name, str)
            check_real(f"metrics[{name!r}]", value, -sys.float_info.max)

    def image_shape(self, network: Any) -> tuple[int, int, int]:
        """`(height, width, channels)` of what the network is called with."""
        if self.preprocessing is not None:
            return self.preprocessing.image_shape
        model = self.model
        return model.image_shape if isinstance(model, ModuleSpec) else network.input_shape[1:]

    @property
    def tree(self) -> dict[str, Any]:
        """Plain JSON values, as they are written."""
        preprocessing = self.preprocessing
        return {
            "model": self.model.to_json(),
            "preprocessing": None if preprocessing is None else preprocessing.to_json(),
            "class_names": list(self.class_names),
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "created_by": f"mlg_jax {mlg_jax.__version__}",
        }

    @classmethod
    def of(cls, packed: PackedModel, name: str) -> "Manifest":
        """A packed model's.

        Raises:
            PackedFileError: something is missing or does not fit; the message names the file.
        """
        tree = packed.manifest
        try:
            preprocessing = tree["preprocessing"]
            return cls(
                model=spec_from_json(tree["model"]),
                preprocessing=preprocessing and ImagePreprocessing.from_json(preprocessing),
                class_names=tree["class_names"],
                metrics=tree["metrics"],
            )
        except KeyError as error:
            raise PackedFileError(f"{name}: its manifest must have {error}.") from error
        except (TypeError, ValueError) as error:
            raise PackedFileError(f"{name}: {printable(error, MAX_LINE)}") from error
