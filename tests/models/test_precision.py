"""The precision a device gets, why, and what is said about it."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from prm_core import config as configuration
from prm_core.models import precision
from prm_core.models.precision import as_saved, choose, resolve
from tests.builders import tiny
from tests.builders.training import small_config

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f{}\nbugs\t\t: none\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp{}\n"


@pytest.fixture(autouse=True)
def nothing_said_or_capped(monkeypatch) -> None:
    precision._say.cache_clear()
    for name in precision.CAPS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """Has the machine be one whose /proc/cpuinfo says this; None for a system without."""
    def use(text: str | None) -> None:
        file = tmp_path / "cpuinfo"
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(precision, "CPU_INFO", file)

    return use


@pytest.mark.parametrize(("text", "chosen"), [
    (X86.format(""), "float32"), (X86.format(" avx512_bf16"), "bfloat16"), (X86.format(" amx_bf16"), "bfloat16"),
    (X86.format(" avx512_fp16"), "float32"), (ARM.format(""), "float32"), (ARM.format(" bf16"), "bfloat16"),
    ("processor: 0\n", "float32"), (None, "float32"),
])
def test_auto_on_a_cpu_goes_by_its_instructions(processor, text: str | None, chosen: str) -> None:
    processor(text)
    assert choose("auto", CPU, "models.dtype") == chosen


@pytest.mark.parametrize("name", precision.CAPS)
@pytest.mark.parametrize(("cap", "chosen"), [
    ("avx2", "float32"), ("AVX512_CORE", "float32"), ("AVX512_CORE_BF16", "bfloat16"), ("DEFAULT", "bfloat16"),
])
def test_instructions_that_the_environment_caps_do_not_count(
    processor, monkeypatch, name: str, cap: str, chosen: str
) -> None:
    processor(X86.format(" avx512_bf16"))
    monkeypatch.setenv(name, cap)
    assert choose("auto", CPU, "models.dtype") == chosen


@pytest.mark.parametrize(("able", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_on_a_gpu_asks_for_what_is_no_emulation(monkeypatch, able: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able or including_emulation)
    assert choose("auto", GPU, "models.dtype") == chosen


def test_auto_on_other_devices_is_float32() -> None:
    assert choose("auto", torch.device("mps"), "models.dtype") == "float32"


def test_what_auto_chose_and_why_is_said_once(processor, caplog) -> None:
    processor(X86.format(""))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            choose("auto", CPU, "models.dtype")
    assert caplog.messages == ["models.dtype auto: float32, this processor has no bfloat16 instructions"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_order_is_followed_with_a_warning_where_the_processor_is_slow(processor, caplog, dtype: str) -> None:
    processor(X86.format(""))
    assert choose(dtype, CPU, "train_prm.precision") == dtype
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"train_prm.precision is {dtype}, and this processor has no {dtype} instructions: products were measured 30 "
        "times slower than in float32; set train_prm.precision to auto or float32")


def test_orders_that_are_fast_say_nothing(processor, caplog) -> None:
    processor(X86.format(" avx512_bf16"))
    with caplog.at_level(logging.INFO):
        assert [choose(dtype, CPU, "models.dtype") for dtype in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    assert caplog.messages == []


@pytest.mark.parametrize(("text", "chosen"), [(X86.format(""), "float32"), (X86.format(" avx512_bf16"), "bfloat16")])
def test_a_config_is_resolved_whole(processor, text: str, chosen: str) -> None:
    processor(text)
    config = small_config(models={"dtype": "auto"}, train_prm={"precision": "auto"})
    found = resolve(config)
    assert (found.models.dtype, found.train_prm.precision) == (chosen, chosen)
    assert resolve(found) == found


@pytest.mark.parametrize("name", ["gsm8k-smollm2", "prm800k-smollm2", "qwen2.5-7b"])
def test_profiles_of_pretrained_models_leave_it_to_the_machine(name: str) -> None:
    values = configuration.read_yaml(configuration.PROFILES / f"{name}.yaml")
    assert (values["models"]["dtype"], values["train_prm"]["precision"]) == ("auto", "auto")


def test_a_saved_model_is_computed_in_its_own_type_where_that_is_fast(processor, tmp_path: Path) -> None:
    model = tiny.make_policy().model
    model.save_pretrained(tmp_path / "float32")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bfloat16")
    for text, expected in ((X86.format(""), "float32"), (X86.format(" avx512_bf16"), "auto")):
        processor(text)
        assert as_saved(str(tmp_path / "bfloat16"), CPU) == expected
        assert as_saved(str(tmp_path / "float32"), CPU) == "auto"
