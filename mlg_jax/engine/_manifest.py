"""The validated metadata of a packed file: model, preprocessing, class names, metrics."""

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
    """The metadata of a packed file.

    Args:
        model: the spec of the model, or the name and shapes of a custom module.
        preprocessing: of uint8 images; None if unknown.
        class_names: one name per logit; empty if unknown.
        metrics: finite numbers by name, as given to `save_packed`.
        card: what its users should know of the model, as text by heading.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or the number of class names is not
            the number of logits.
    """

    model: NetworkSpec
    preprocessing: ImagePreprocessing | None = None
    class_names: tuple[str, ...] = ()
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    card: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_instance("preprocessing", self.preprocessing, (ImagePreprocessing, type(None)))
        check_instance("class_names", self.class_names, (tuple, list))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        for name in self.class_names:
            check_instance("class_names", name, str)
        if self.class_names and len(self.class_names) != self.model.num_classes:
            raise ValueError(
                f"`class_names` must be {self.model.num_classes} names, one per logit; "
                f"got {len(self.class_names)}."
            )
        check_instance("metrics", self.metrics, Mapping)
        for name, value in self.metrics.items():
            check_instance("metrics", name, str)
            check_real(f"metrics[{name!r}]", value, -sys.float_info.max)
        check_instance("card", self.card, Mapping)
        for text in (*self.card, *self.card.values()):
            check_instance("card", text, str)

    def image_shape(self, network: Any) -> tuple[int, int, int]:
        """`(height, width, channels)` of the network's input images."""
        if self.preprocessing is not None:
            return self.preprocessing.image_shape
        model = self.model
        return model.image_shape if isinstance(model, ModuleSpec) else network.input_shape[1:]

    @property
    def tree(self) -> dict[str, Any]:
        """The metadata as plain JSON values, as stored in the file."""
        preprocessing = self.preprocessing
        return {
            "model": self.model.to_json(),
            "preprocessing": None if preprocessing is None else preprocessing.to_json(),
            "class_names": list(self.class_names),
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "created_by": f"mlg_jax {mlg_jax.__version__}",
            **({"card": dict(self.card)} if self.card else {}),
        }

    @classmethod
    def of(cls, packed: PackedModel, name: str) -> "Manifest":
        """The manifest of a packed model from the file `name`.

        Raises:
            PackedFileError: an entry is missing or invalid; the message begins with `name`.
        """
        tree = packed.manifest
        try:
            preprocessing = tree["preprocessing"]
            return cls(
                model=spec_from_json(tree["model"]),
                preprocessing=preprocessing and ImagePreprocessing.from_json(preprocessing),
                class_names=tree["class_names"],
                metrics=tree["metrics"],
                card=tree.get("card", {}),
            )
        except KeyError as error:
            raise PackedFileError(f"{name}: its manifest must have {error}.") from error
        except (TypeError, ValueError) as error:
            raise PackedFileError(f"{name}: {printable(error, MAX_LINE)}") from error
