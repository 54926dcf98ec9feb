"""Every setting with its meaning, and the checks that catch a typo before anything runs.

`whole.py` holds the configuration and what two values may not be together, `profiles.py` the files it is read from.
"""

from prm_core.config.data import (
    CalibrateConfig,
    DataConfig,
    EncoderConfig,
    GenerateConfig,
    JudgeConfig,
    LabelConfig,
    McDropoutConfig,
    MctsConfig,
    ModelsConfig,
    RolloutConfig,
    ValidateConfig,
    VerifierConfig,
    WarmupConfig,
)
from prm_core.config.profiles import PARAMS_FILE, PROFILES, merge, profile_names, read_yaml
from prm_core.config.service import (
    DriftConfig,
    EngineConfig,
    EvaluateConfig,
    HttpConfig,
    PromoteConfig,
    RegisterConfig,
    SearchConfig,
    ServeConfig,
)
from prm_core.config.training import (
    IMPLICIT,
    AdvantageConfig,
    CriticConfig,
    GuardConfig,
    ImplicitConfig,
    PolicyTrainingConfig,
    ProbeConfig,
    RewardTrainingConfig,
)
from prm_core.config.whole import Config, load, parse, resolve

__all__ = [
    "IMPLICIT",
    "PARAMS_FILE",
    "PROFILES",
    "AdvantageConfig",
    "CalibrateConfig",
    "Config",
    "CriticConfig",
    "DataConfig",
    "DriftConfig",
    "EncoderConfig",
    "EngineConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "GuardConfig",
    "HttpConfig",
    "ImplicitConfig",
    "JudgeConfig",
    "LabelConfig",
    "McDropoutConfig",
    "MctsConfig",
    "ModelsConfig",
    "PolicyTrainingConfig",
    "ProbeConfig",
    "PromoteConfig",
    "RegisterConfig",
    "RewardTrainingConfig",
    "RolloutConfig",
    "SearchConfig",
    "ServeConfig",
    "ValidateConfig",
    "VerifierConfig",
    "WarmupConfig",
    "load",
    "merge",
    "parse",
    "profile_names",
    "read_yaml",
    "resolve",
]
