"""Networks that stand for all others: those of `BACKBONES`, and of families that it does not name."""

from photo_classifier.models.backbones import BACKBONES

# the larger EfficientNet-Lites repeat the layers of the first
NAMED = tuple(name for name in BACKBONES if name not in ("efficientnet_lite1", "efficientnet_lite2"))

# as small as they come

FURTHER = (
    *("resnet18", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"),
    *("mnasnet0_5", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t"),
    *("timm/mobilenetv3_small_050", "timm/lcnet_035", "timm/repvgg_a0", "timm/resnest14d", "timm/edgenext_xx_small"),
    *("timm/efficientvit_b0", "timm/mobilevitv2_050", "timm/fastvit_t8", "timm/test_mambaout", "timm/test_nfnet"),
    *("timm/test_vit", "timm/pvt_v2_b0", "timm/xcit_nano_12_p16_224"),
)
