"""Every kind of reward model by name, and the one way a saved one is loaded whatever its kind."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from prm_core.errors import InputError
from prm_core.models.loading import check_folder, pick_device
from prm_core.models.precision import as_saved

# Imported for its registration.
from prm_core.scoring import implicit
from prm_core.scoring.arithmetic import KEY as ARITHMETIC
from prm_core.scoring.arithmetic import Arithmetic
from prm_core.scoring.heads import Heads
from prm_core.scoring.reward import REWARD_MODELS, RewardModel
from prm_core.scoring.settings import reward_settings

__all__ = ["REWARD_MODELS", "implicit", "load_reward_model"]

Model = TypeVar("Model", bound=RewardModel)


def load_reward_model(
    folder: str | Path, of: type[Model] = RewardModel, *, dtype: str = "auto", device: str = "auto"
) -> Model:
    """The model in a folder that `save_pretrained` wrote, in eval mode.

    Args:
        of: the class it must be of.
        dtype: to compute in; `auto` is the saved one, or float32 where the device is slow in that.

    Raises InputError when the folder holds no reward model, one of another class, or pickled weights, or when it was
    saved without its base and that is not there.
    """
    path = str(folder)
    check_folder(path)
    settings = reward_settings(path)
    kind = settings["kind"]
    if kind not in REWARD_MODELS or not issubclass(REWARD_MODELS[kind], of):
        wanted = getattr(of, "kind", ", ".join(REWARD_MODELS))
        raise InputError(f"{path}: a reward model of kind {kind!r}, where one of kind {wanted!r} is needed")
    place = pick_device(device)
    model = REWARD_MODELS[kind].read(path, settings, as_saved(path, place) if dtype == "auto" else dtype)
    model.precision = settings.get("precision")
    model.arithmetic = Arithmetic.read(settings.get(ARITHMETIC), path)
    model.heads = Heads.load(Path(path), model.feature_count)
    return model.to(place).eval()
