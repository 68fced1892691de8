"""Settings: `schema` says what there is, `rules` what is allowed, `files` reads and writes YAML."""

from nanokimi.config.schema import (
    ARM_NAMES,
    BUDGETS,
    DISPLAY_NAMES,
    FREE_WHEN_RESUMED,
    CompareConfig,
    DatasetConfig,
    GPTArm,
    GPTConfig,
    KimiArm,
    KimiConfig,
    ModelName,
    OptimConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    YarnConfig,
)

__all__ = [
    "ARM_NAMES",
    "BUDGETS",
    "DISPLAY_NAMES",
    "FREE_WHEN_RESUMED",
    "CompareConfig",
    "DatasetConfig",
    "GPTArm",
    "GPTConfig",
    "KimiArm",
    "KimiConfig",
    "ModelName",
    "OptimConfig",
    "RunConfig",
    "SampleConfig",
    "TrainConfig",
    "YarnConfig",
]
