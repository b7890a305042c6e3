"""The data sets that have a name, and the forms of all others. Imports nothing: `ssl-bench list` shows them at once."""

from __future__ import annotations

DATASETS: dict[str, str] = {
    "shapes": "10 classes of drawn shapes, 10,000 + 4,000 images of 32 px (shapes@64: another size); built in",
    "scenes": "1 to 4 of these shapes in one image with their masks, 2,000 + 500 images of 64 px; no labels; built in",
    "clips": "shapes that move over each other, with their masks, 10 + 30 clips of 16 frames of 64 px; built in",
    "aircraft": "FGVC-Aircraft, 100 variants, 6,667 + 3,333 images",
    "cifar10": "CIFAR-10, 50,000 + 10,000 images of 32 px",
    "cifar100": "CIFAR-100, 50,000 + 10,000 images of 32 px",
    "dtd": "Describable Textures (partition 1), 47 classes, 3,760 + 1,880 images",
    "eurosat": "EuroSAT, 10 classes, 27,000 images of 64 px, 20 % held out as test",
    "fashionmnist": "Fashion-MNIST, 10 classes, 60,000 + 10,000 grey images of 28 px",
    "flowers102": "Oxford Flowers, 102 classes, 2,040 + 6,149 images",
    "food101": "Food-101, 101 classes, 75,750 + 25,250 images",
    "imagenet1k": "ImageNet-1k, 1,281,167 + 50,000 images; put in data/imagenet1k/{train,val}/<class>/ by you",
    "imagenette": "Imagenette v2 (320 px), 10 ImageNet classes, 9,469 + 3,925 images",
    "pets": "Oxford-IIIT Pet, 37 classes, 3,680 + 3,669 images",
    "stl10": "STL-10, 10 classes, 5,000 + 8,000 labelled images of 96 px",
    "svhn": "Street View House Numbers, 10 classes, 73,257 + 26,032 images of 32 px",
    "voc2012": "PASCAL VOC 2012 with class masks, 1,464 + 1,449 images; put in data/VOCdevkit/VOC2012/ by you",
    "ade20k": "ADE20K with masks of 150 classes, 20,210 + 2,000 images; put in data/ADEChallengeData2016/ by you",
    "pets-masks": "Oxford-IIIT Pet with masks of the pet, 3,680 + 3,669 images; data/oxford-iiit-pet/, as `pets`",
    "davis2017": "DAVIS 2017, 60 + 30 clips at 480p with the masks of objects; put in data/DAVIS/ by you",
    "coco2017": "COCO 2017 with the objects of 80 classes, 118,287 + 5,000 images; put in data/coco/ by you",
    "folder:PATH": "class folders, or train/ and test|val|validation/ with class folders inside",
    "parquet:PATH": "a Parquet file or folder as Hugging Face lays it out: columns image|img and label",
    "hf:NAME": "a data set of the Hugging Face hub (needs the datasets library)",
    "file.py:NAME": "a function of yours that returns (training, test) images as torch-style data sets",
    "DATA#N": "any of these with about N of its training images, the same share of each class (cifar10#10000)",
}
