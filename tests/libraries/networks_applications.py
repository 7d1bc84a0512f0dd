"""keras.applications: each kind of network, with weights of its own and small images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from keras import Model, applications


def network(make: Callable[..., Model], size: int = 32, **options: object) -> Callable[[], Model]:
    return functools.partial(make, weights=None, include_top=False, input_shape=(size, size, 3), **options)


SMALL: Mapping[str, Callable[[], Model]] = {
    "mobilenet": network(applications.MobileNet, alpha=0.25),
    "mobilenet_v2": network(applications.MobileNetV2, alpha=0.35),
    "mobilenet_v3_small": network(applications.MobileNetV3Small),
    "efficientnet_b0": network(applications.EfficientNetB0),
    "nasnet_mobile": network(applications.NASNetMobile),
}
LARGE: Mapping[str, Callable[[], Model]] = {
    "convnext_tiny": network(applications.ConvNeXtTiny),
    "densenet121": network(applications.DenseNet121),
    "efficientnet_v2_b0": network(applications.EfficientNetV2B0),
    "inception_v3": network(applications.InceptionV3, 75),
    "mobilenet_v3_large": network(applications.MobileNetV3Large),
    "resnet50": network(applications.ResNet50),
    "resnet50_v2": network(applications.ResNet50V2),
    "vgg16": network(applications.VGG16),
    "xception": network(applications.Xception, 71),
}
# Too large for every change.
HUGE: Mapping[str, Callable[[], Model]] = {
    "inception_resnet_v2": network(applications.InceptionResNetV2, 75),
    "resnet101": network(applications.ResNet101),
    "vgg19": network(applications.VGG19),
}
