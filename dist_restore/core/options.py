"""What a restore may be told, as checked values."""

from __future__ import annotations

import dataclasses
import enum
from typing import TypeVar


class Matching(str, enum.Enum):
    """What may be accepted beyond the rules."""

    EXACT = "exact"
    AUTO = "auto"


class Unmatched(str, enum.Enum):
    """What becomes of a target that nothing fills."""

    ERROR = "error"
    KEEP = "keep"


class Order(str, enum.Enum):
    """What becomes of targets for which only the order among equals speaks."""

    ACCEPT = "accept"
    REFUSE = "refuse"


class Reads(str, enum.Enum):
    """Which workers read the files."""

    AUTO = "auto"
    EVERY_WORKER = "every_worker"
    CHIEF = "chief"
    SHARDED = "sharded"


class Verify(str, enum.Enum):
    """What is compared: nothing, the stored checksums, or besides what every replica holds afterwards."""

    NONE = "none"
    CHECKSUM = "checksum"
    REPLICAS = "replicas"


Choice = TypeVar("Choice", bound=enum.Enum)


@dataclasses.dataclass(frozen=True, slots=True)
class RestoreConfig:
    """The options of a `DistributedRestorer`, checked.

    Attributes:
      matching: see `Matching`.
      unmatched: see `Unmatched`.
      order: see `Order`.
      reads: see `Reads`.
      verify: see `Verify`.
      memory_budget: bytes of tensors in flight per worker; a larger tensor passes alone.
      timeout: seconds that any one wait for another worker may take.
      verify_slices: whether tensors of which little is needed are read whole, so that they can be checked.
      log_dir: TensorBoard directory, written by the chief; empty for none.
      progress: whether a progress bar is shown; None means on long restores in a terminal.
    """

    matching: Matching = Matching.EXACT
    unmatched: Unmatched = Unmatched.ERROR
    order: Order = Order.ACCEPT
    reads: Reads = Reads.AUTO
    verify: Verify = Verify.REPLICAS
    memory_budget: int = 256 << 20
    timeout: float = 600.0
    verify_slices: bool = False
    log_dir: str = ""
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.memory_budget <= 0:
            raise ValueError(f"memory_budget is a number of bytes above 0; found {self.memory_budget!r}.")
        if not self.timeout > 0:
            raise ValueError(f"timeout is a number of seconds above 0; found {self.timeout!r}.")


def choice(kind: type[Choice], value: object, option: str) -> Choice:
    """One of an enum's values, from its text.

    Raises:
      ValueError: the text is none of them; the message lists them.
    """
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(item.value) for item in kind)
        raise ValueError(f"{option}={value!r} is unknown; use one of {known}.") from None
