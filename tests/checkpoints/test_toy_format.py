"""A format that lite-probe has never seen is one reader, and nothing else is touched."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lite_probe.checkpoints import Checkpoint, detect, open_checkpoint
from lite_probe.checkpoints.weights import Weights, on_meta
from lite_probe.errors import InputError
from tests.checkpoints import writers
from tests.checkpoints.test_formats import assert_same_weights


class NumpyWeights(Weights):
    def __init__(self, path: Path) -> None:
        self.files = (path,)
        with np.load(path, allow_pickle=False) as arrays:
            self._arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.metas = {name: on_meta(tensor) for name, tensor in self._arrays.items()}

    def read(self, name: str) -> Tensor:
        return self._arrays[name]


def holds(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path) and all(name.endswith(".npy") for name in names_in(path))


def names_in(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def read(path: Path, *, trust_pickle: bool, model_config: Mapping[str, Any] | None) -> Checkpoint:
    return Checkpoint(path=path, format="numpy", weights=NumpyWeights(path), model_config=model_config, step=7)


def test_a_reader_adds_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = writers.make_model("llama")
    path = tmp_path / "weights"
    with path.open("wb") as file:
        np.savez(file, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    with pytest.raises(InputError):
        open_checkpoint(path, model_config=writers.CONFIGS["llama"])
    monkeypatch.setattr(detect, "READERS", [detect.Reader("a numpy archive", holds, read), *detect.READERS])
    checkpoint = open_checkpoint(path, model_config=writers.CONFIGS["llama"])
    assert (checkpoint.format, checkpoint.family, checkpoint.step) == ("numpy", "llama", 7)
    assert_same_weights(checkpoint.build_model(), model)
    with pytest.raises(InputError, match=re.escape("expected a numpy archive, a LITE training folder, ")):
        open_checkpoint(tmp_path / "nothing")
