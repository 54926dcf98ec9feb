"""What is committed to be put on a base model: whole, of this version, and without the base one clear error."""

from __future__ import annotations

import pytest

from prm_core.errors import InputError
from prm_core.models.bases import VARIABLE
from prm_core.scoring.scorer import load_scorer
from prm_core.scoring.settings import reward_settings
from tests import ROOT

ADAPTERS = sorted((ROOT / "adapters").iterdir())


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda folder: folder.name)
def test_an_adapter_names_its_base_and_asks_for_it(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base = reward_settings(str(folder))["base"]["name"]
    assert (folder / "training.json").is_file()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6
    # Digests of all files are looked at first: one that differs would be the error.
    with pytest.raises(InputError, match=f"was saved without its base model {base} .*{VARIABLE}"):
        load_scorer(folder, device="cpu")
