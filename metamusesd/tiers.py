"""The names of the tiers, known to everybody."""

TIERS = ("fast", "medium", "heavy", "code", "math", "reasoning")
GENERAL_TIERS = TIERS[:3]  # from the smallest upwards
