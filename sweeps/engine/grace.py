"""The grace period: how long a machine may be silent until others take its trials over.

A command promises it with every trial that it takes, and shows a sign of life ten times as often;
observers wait for as long as was promised, so that commands need not agree on one number.
"""

__all__ = ["BEATS", "GRACE", "check_grace"]

from dtr_lightning.errors import UserError

GRACE = 300.0  # seconds, by default
BEATS = 10  # signs of life in a grace period
MOST = 604_800.0  # seconds: a week
LEAST_HEARTBEAT = 2.0  # seconds between two: a command looks around as often


def check_grace(grace: float | None) -> None:
    """Raises UserError for a grace period, in seconds, that heartbeats are too slow for."""
    least = BEATS * LEAST_HEARTBEAT
    if grace is not None and not least <= grace <= MOST:
        raise UserError(
            f"--grace {grace:g} is not valid: a machine shows a sign of life every "
            f"{LEAST_HEARTBEAT:g} seconds at best, {BEATS} times in a grace period; "
            f"give {least:g} to {MOST:,.0f}"
        )
