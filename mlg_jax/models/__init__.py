"""Architectures, by name, and their sizes."""

from mlg_jax.models._blocks import BasicBlock as BasicBlock
from mlg_jax.models._blocks import BottleneckBlock as BottleneckBlock
from mlg_jax.models._blocks import LayerFactory as LayerFactory
from mlg_jax.models._create import create_model as create_model
from mlg_jax.models._registry import MODELS as MODELS
from mlg_jax.models._size import LayerSize as LayerSize
from mlg_jax.models._size import SizeReport as SizeReport
from mlg_jax.models._size import size_report as size_report
from mlg_jax.models._spec import ImplementationChoice as ImplementationChoice
from mlg_jax.models._spec import ModelSpec as ModelSpec
from mlg_jax.models.alexnet import AlexNet as AlexNet
from mlg_jax.models.mobilenet_v2 import MobileNetV2 as MobileNetV2
from mlg_jax.models.resnet import STEMS as STEMS
from mlg_jax.models.resnet import ResNet as ResNet
from mlg_jax.models.squeezenet import SqueezeNet as SqueezeNet
from mlg_jax.models.vgg import VGG as VGG
