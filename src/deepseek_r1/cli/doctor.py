"""The verb `doctor`."""

from __future__ import annotations

import dataclasses
import json

from deepseek_r1.config.doctor import DoctorConfig


def doctor(config: DoctorConfig) -> int:
    """Print every check with its outcome and its mend. Exit code 1 when something required is missing."""
    from deepseek_r1.operate.doctor import run_checks

    checks = run_checks(config.port)
    if config.json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.status:<7}  {check.name:<{width}}  {check.detail}")
            if check.mend:
                print(f"{'':<7}  {'':<{width}}  mend: {check.mend}")
    return 1 if any(check.status == "missing" for check in checks) else 0
