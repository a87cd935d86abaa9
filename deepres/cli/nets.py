"""``deepres nets``."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

from deepres.errors import DeepresError


@dataclass(frozen=True)
class Nets:
    """List the networks that have a name; other depths of 6n+2 and 9n+2 work too."""

    pattern: Positional[str] = "*"  # names to list, such as "*cifar*"

    def run(self) -> int:
        from deepres.nn import names
        from deepres.nn.zoo import names as known

        found = names(self.pattern)
        if not found:
            raise DeepresError(f"no network's name matches {self.pattern!r}; `deepres nets` lists all {len(known())}")
        print("\n".join(found))
        return 0
