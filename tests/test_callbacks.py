"""What the callbacks write, and that nothing of it is lost without a word."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ribseg.data.io.maps import LocalizationMaps, read_records
from ribseg.errors import DataError
from ribseg.modules import callbacks
from ribseg.modules.localization import Prediction
from ribseg.modules.mask_prediction import MaskPrediction

TRAINER = SimpleNamespace(global_rank=0)


def write(writer, prediction):
    writer.write_on_batch_end(TRAINER, None, prediction, None, None, 0, 0)


def test_an_image_that_counts_as_done_has_its_record(tmp_path):
    """A kill may come between the two files: the map, which marks the image as done, is the second."""
    maps = LocalizationMaps(torch.tensor([0]), torch.full((1, 2, 2), torch.nan), None)
    with pytest.raises(DataError, match="not written"):
        write(callbacks.MapWriter(tmp_path), Prediction("a", maps, {"id": "a"}))
    assert not list(tmp_path.rglob("*.npz"))
    assert read_records(tmp_path) == {"a": {"id": "a"}}


@pytest.mark.parametrize("number", [1, 4])
def test_errors_of_the_processes_for_the_crf_end_the_run(tmp_path, monkeypatch, number):
    monkeypatch.setattr(callbacks, "process_pool", ThreadPoolExecutor)  # processes take seconds to start
    writer = callbacks.MaskWriter(tmp_path, crf={"iterations": 1})
    image, scores = np.zeros((4, 4, 3), np.uint8), np.zeros((2, 5, 5), np.float32)  # of another size

    def predict():
        for place in range(number):
            write(writer, MaskPrediction(f"m{place}", None, image, scores))
        writer.on_predict_end(None, None)

    with pytest.raises(ValueError, match="of the image's size"):
        predict()
    writer.teardown(None, None, "predict")
