"""All that is fuzzed, by name."""

import fuzz_files  # noqa: F401
import fuzz_options  # noqa: F401
import fuzz_rows  # noqa: F401
from fuzz_cases import TARGETS, Target, run_case

__all__ = ["TARGETS", "Target", "run_case"]
