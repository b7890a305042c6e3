"""The methods, by name. One outside this package is named ``package.module:Class`` or ``path/to/file.py:Class``."""

from __future__ import annotations

from ssl_bench.methods.baselines import RawPixels, Supervised, Untrained
from ssl_bench.methods.beit import BEiT
from ssl_bench.methods.beit_v2 import BEiTv2
from ssl_bench.methods.byol import BYOL
from ssl_bench.methods.clip import CLIP
from ssl_bench.methods.dino import DINO
from ssl_bench.methods.dvae import DVAE
from ssl_bench.methods.esvit import EsViT
from ssl_bench.methods.eva import EVA
from ssl_bench.methods.eva02 import EVA02MIM
from ssl_bench.methods.hiera_mae import HieraMAE
from ssl_bench.methods.ibot import IBOT
from ssl_bench.methods.igpt import IGPT
from ssl_bench.methods.mae import MAE
from ssl_bench.methods.maskfeat import MaskFeat
from ssl_bench.methods.method import Method
from ssl_bench.methods.moby import MoBY
from ssl_bench.methods.moco_v3 import MoCoV3
from ssl_bench.methods.mpp import MPP
from ssl_bench.methods.simclr import SimCLR
from ssl_bench.methods.simmim import SimMIM
from ssl_bench.methods.ssta import SSTA
from ssl_bench.methods.swav import SwAV
from ssl_bench.methods.vqkd import VQKD

# A new one goes to the end: its place is its colour and marker in figures.
METHODS: dict[str, type[Method]] = {
    "raw_pixels": RawPixels,
    "untrained": Untrained,
    "supervised": Supervised,
    "mpp": MPP,
    "simclr": SimCLR,
    "byol": BYOL,
    "swav": SwAV,
    "moco_v3": MoCoV3,
    "moby": MoBY,
    "dino": DINO,
    "esvit": EsViT,
    "ibot": IBOT,
    "beit": BEiT,
    "beit_v2": BEiTv2,
    "mae": MAE,
    "igpt": IGPT,
    "hiera_mae": HieraMAE,
    "ssta": SSTA,
    "maskfeat": MaskFeat,
    "simmim": SimMIM,
    "eva": EVA,
    "eva02": EVA02MIM,
}
UNTRAINED, RAW_PIXELS = "untrained", "raw_pixels"
BASELINES = (UNTRAINED, RAW_PIXELS, "supervised")
# Frozen networks that other methods compare with: pre-trained like a method, never a row of their own.
TEACHERS: dict[str, type[Method]] = {"dvae": DVAE, "vqkd": VQKD, "clip": CLIP}
