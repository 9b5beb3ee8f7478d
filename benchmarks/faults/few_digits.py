"""A few of scikit-learn's digits for the fault trials: an evaluation within milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np

from fractrain.data.images import ArraySource, IntArray
from fractrain.data.info import DatasetInfo


class FewDigits(ArraySource):
    """The first digits, test after training."""

    def arrays(self, info: DatasetInfo, data_dir: str | Path | None, download: bool) -> Any:
        """Return images (uint8, ``[N, 3, 8, 8]``) and labels of both parts."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = (images.reshape(-1, 1, 8, 8) * 15.9).astype(np.uint8).repeat(3, axis=1)
        numbers: IntArray = labels.astype(np.int64)
        end = info.train_size + info.test_size
        train, test = slice(0, info.train_size), slice(info.train_size, end)
        return (pixels[train], numbers[train]), (pixels[test], numbers[test])


FEW_DIGITS = DatasetInfo(
    name="few_digits", title="184 handwritten digits", classes=10, shape=(3, 8, 8), train_size=144, test_size=40,
    mean=(0.31,) * 3, std=(0.38,) * 3, access=FewDigits(), embedded=True, augment=True, flip=False, pad=1,
)  # fmt: skip
